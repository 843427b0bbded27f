"""A report of what reranking brings on a user's own datasets: one HTML page, and JSON beside it.

`records` says what is measured, `measuring` and `variants` measure it, `cases` picks queries to
show, `summary` says it in sentences, and `page` writes it with the drawings of `plots`.
"""
