"""`python -m mcip_qdrant`."""

from mcip_qdrant.cli.main import main

if __name__ == "__main__":
    main()
