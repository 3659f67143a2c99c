"""All collections and aliases, and the file that remembers them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import uuid
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from qdrant_server.collection import Collection
from qdrant_server.config import changed_config, new_config
from qdrant_server.errors import ApiError, no_collection, not_found, wrong_input

_FILE = "catalog.json"
_MAINTENANCE_S = 0.5
_BAD_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


class Catalog:
    """The collections below one folder. `catalog.json` is written last when something appears and first when it goes."""

    def __init__(self, data: Path) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self._data = data
        self._owner = (data / "lock").open("w")
        fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the kernel, however this process ends
        self._lock = threading.RLock()
        self._collections: dict[str, Collection] = {}
        self._aliases: dict[str, str] = {}
        self._load()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._maintain, name="maintenance", daemon=True)
        self._keeper.start()

    def _load(self) -> None:
        file = self._data / _FILE
        known = json.loads(file.read_bytes()) if file.exists() else {"collections": {}, "aliases": {}}
        folders = {one["folder"] for one in known["collections"].values()}
        for left_over in (self._data / "collections").glob("*"):
            if left_over.name not in folders:  # killed between the folder and the file
                shutil.rmtree(left_over)
        for name, one in known["collections"].items():
            self._collections[name] = Collection.load(name, self._folder(one["folder"]), one["config"], one["indexes"])
        self._aliases = known["aliases"]

    def _folder(self, name: str) -> Path:
        return self._data / "collections" / name

    def _save(self, collections: dict[str, Collection], aliases: dict[str, str]) -> None:
        """Remember this on disk, then in memory."""
        known = {
            "collections": {
                name: {"folder": one.folder.name, "config": one.config, "indexes": one.indexes}
                for name, one in collections.items()
            },
            "aliases": aliases,
        }
        file = self._data / _FILE
        new = file.with_suffix(".new")
        with new.open("w") as stream:
            json.dump(known, stream)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
        folder = os.open(self._data, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._collections, self._aliases = collections, aliases

    def _maintain(self) -> None:
        while not self._stopping.wait(_MAINTENANCE_S):
            for collection in list(self._collections.values()):
                collection.maintain()

    def close(self) -> None:
        """Flush and close everything."""
        self._stopping.set()
        self._keeper.join()
        with self._lock:
            for collection in self._collections.values():
                collection.close()
        self._owner.close()

    def names(self) -> list[str]:
        """Collections, in order."""
        with self._lock:
            return sorted(self._collections)

    def exists(self, name: str) -> bool:
        """Whether a collection or alias has this name."""
        with self._lock:
            return name in self._collections or name in self._aliases

    def get(self, name: str) -> Collection:
        """The collection of this name or alias."""
        with self._lock:
            found = self._collections.get(self._aliases.get(name, name))
        if found is None:
            raise no_collection(name)
        return found

    def create(self, name: str, body: models.CreateCollection) -> bool:
        """Add a collection."""
        if not name or len(name) > 255 or _BAD_NAME.search(name):
            raise ApiError(422, f"Validation error in path parameters: [collection_name: value {name!r} invalid]")
        with self._lock:
            if name in self._collections:
                raise ApiError(409, f"Wrong input: Collection `{name}` already exists!")
            if name in self._aliases:
                raise wrong_input(f"Can't create collection with name {name}. Alias with the same name already exists")
            config = new_config(body)
            folder = self._folder(uuid.uuid4().hex)
            folder.parent.mkdir(exist_ok=True)
            made = Collection.create(name, folder, config)
            self._save({**self._collections, name: made}, self._aliases)
            return True

    def update(self, name: str, body: models.UpdateCollection) -> bool:
        """Change a collection's configuration or metadata."""
        with self._lock:
            collection = self.get(name)
            collection.reconfigure(changed_config(collection.config, body))
            self._save(self._collections, self._aliases)
            return True

    def delete(self, name: str) -> bool:
        """Remove a collection and its aliases. As in Qdrant, the name of an alias removes nothing."""
        with self._lock:
            collection = self._collections.get(name)
            if collection is None:
                return False
            self._save(
                {other: one for other, one in self._collections.items() if other != name},
                {alias: target for alias, target in self._aliases.items() if target != name},
            )
        collection.close()
        shutil.rmtree(collection.folder)
        return True

    def set_index(self, name: str, field: str, engine_schema: Any, schema: Any) -> int:
        """Create a payload index, or drop it where `schema` is None."""
        with self._lock:
            collection = self.get(name)
            if schema is None:
                number = collection.apply([edge.UpdateOperation.delete_field_index(field)])
                collection.indexes.pop(field, None)
            else:
                number = collection.apply([edge.UpdateOperation.create_field_index(field, engine_schema)])
                collection.indexes[field] = schema
            self._save(self._collections, self._aliases)
            return number

    def aliases(self, name: str | None = None) -> list[dict[str, str]]:
        """All aliases, or one collection's."""
        with self._lock:
            target = None if name is None else self.get(name).name
            return [
                {"alias_name": alias, "collection_name": collection}
                for alias, collection in sorted(self._aliases.items())
                if target in {None, collection}
            ]

    def change_aliases(self, actions: list[Any]) -> bool:
        """Apply alias changes, all or none."""
        with self._lock:
            aliases = dict(self._aliases)
            for action in actions:
                match action:
                    case models.CreateAliasOperation(create_alias=new):
                        if new.collection_name not in self._collections:
                            raise no_collection(new.collection_name)
                        if new.alias_name in self._collections:
                            raise ApiError(409, f"Wrong input: Collection `{new.alias_name}` already exists!")
                        aliases[new.alias_name] = new.collection_name
                    case models.DeleteAliasOperation(delete_alias=old):
                        aliases.pop(old.alias_name, None)
                    case models.RenameAliasOperation(rename_alias=both):
                        if both.old_alias_name not in aliases:
                            raise not_found(f"Alias {both.old_alias_name} does not exists!")
                        aliases[both.new_alias_name] = aliases.pop(both.old_alias_name)
            self._save(self._collections, aliases)
            return True
