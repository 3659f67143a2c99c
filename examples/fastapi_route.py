"""A search route in an application of your own.

    MCIP_QDRANT_BUNDLE=bundle MCIP_QDRANT_URL=http://localhost:6333 uvicorn --app-dir examples fastapi_route:app
    curl 'http://127.0.0.1:8000/pictures?text=a+red+car'
    curl --data-binary @car.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/pictures/similar

For a finished server with a page, an API key and limits, see `mcip-qdrant serve`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, HTTPException, Query, Request
from qdrant_client import QdrantClient

from mcip_qdrant import Hits, ImageCollection, ImageError, InvalidQueryError, QueryEncoder


@asynccontextmanager
async def open_collection(app: FastAPI) -> AsyncIterator[None]:
    """One encoder and one client for all requests; both may be shared between threads."""
    where = os.environ.get("MCIP_QDRANT_URL", "qdrant")
    client = QdrantClient(where) if "://" in where else QdrantClient(path=where)
    with QueryEncoder.open(os.environ.get("MCIP_QDRANT_BUNDLE", "bundle")) as encoder:
        name = os.environ.get("MCIP_QDRANT_COLLECTION", "images")
        app.state.collection = ImageCollection(client, name, encoder)
        app.state.collection.count()  # a wrong model is refused now, not at the first request
        yield
    client.close()


app = FastAPI(title="Pictures", lifespan=open_collection)


def collection(request: Request) -> ImageCollection:
    """The collection that was opened at start."""
    return request.app.state.collection


Collection = Annotated[ImageCollection, Depends(collection)]
Limit = Annotated[int, Query(ge=1, le=100)]
Picture = Annotated[bytes, Body(media_type="image/*")]


# Plain `def`: FastAPI runs these in threads, so that encoding does not hold up other requests.
@app.get("/pictures")
def by_text(text: str, images: Collection, limit: Limit = 10) -> list[dict[str, Any]]:
    """Pictures that fit a text."""
    try:
        return answer(images.search(text=text, limit=limit))
    except InvalidQueryError as exc:
        raise HTTPException(422, str(exc)) from exc


@app.post("/pictures/similar")
def by_picture(picture: Picture, images: Collection, limit: Limit = 10) -> list[dict[str, Any]]:
    """Pictures that look like the uploaded one."""
    try:
        return answer(images.search(image=picture, limit=limit))
    except ImageError as exc:
        raise HTTPException(422, str(exc)) from exc


def answer(hits: Hits) -> list[dict[str, Any]]:
    """What a browser needs to know about each hit."""
    return [{"key": hit.key, "score": hit.score, "width": hit.payload["width"]} for hit in hits]
