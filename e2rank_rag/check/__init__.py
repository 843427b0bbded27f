"""What somebody's Qdrant collection holds: its layout, the model that wrote it, and what to do.

`opening` reads without writing, `outline` says how the collection is laid out, `sample` draws
texts with their stored vectors, `probe` finds the model and the text that made them, `fit` compares
a described pipeline with that, `gain` measures what reranking brings, and `lines` writes the code.
"""
