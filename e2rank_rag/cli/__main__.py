"""`python -m e2rank_rag.cli`, which torchrun needs, is the same as `e2rank`."""

from e2rank_rag.cli import main

if __name__ == "__main__":
    main()
