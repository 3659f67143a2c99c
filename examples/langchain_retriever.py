"""Pictures as a step of a LangChain chain. Where `describe` stands, a prompt and a model of yours would follow.

pip install "mcip-qdrant[cpu,langchain]"
python examples/langchain_retriever.py "a red car in the snow" --source photos
"""

import argparse
import os

from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from qdrant_client import QdrantClient, models

from mcip_qdrant import ImageCollection, QueryEncoder
from mcip_qdrant.integrations.langchain import McipRetriever


def describe(found: dict[str, str | list[Document]]) -> str:
    """Put question and pictures into words."""
    lines = [f"Pictures for {found['question']!r}:"]
    for picture in found["pictures"]:
        facts = picture.metadata
        lines.append(f"- {picture.page_content} ({facts['width']} x {facts['height']}, score {facts['_score']:.4f})")
    return "\n".join(lines)


def main() -> None:
    """Answer one question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--bundle", default=os.environ.get("MCIP_QDRANT_BUNDLE", "bundle"))
    parser.add_argument("--qdrant", default=os.environ.get("MCIP_QDRANT_URL", "qdrant"), help="URL or folder")
    parser.add_argument("--collection", default=os.environ.get("MCIP_QDRANT_COLLECTION", "images"))
    parser.add_argument("--source", help="only pictures of this source")
    options = parser.parse_args()

    client = QdrantClient(options.qdrant) if "://" in options.qdrant else QdrantClient(path=options.qdrant)
    search = {}
    if options.source:
        match = models.MatchValue(value=options.source)
        search["filter"] = models.Filter(must=[models.FieldCondition(key="source", match=match)])
    images = ImageCollection(client, options.collection, QueryEncoder.open(options.bundle))
    retriever = McipRetriever(collection=images, limit=4, search=search)
    chain = {"question": RunnablePassthrough(), "pictures": retriever} | RunnableLambda(describe)
    print(chain.invoke(options.question))
    client.close()


if __name__ == "__main__":
    main()
