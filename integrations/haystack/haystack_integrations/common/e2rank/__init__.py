"""Code that the e2rank components share. Private: import the components, not these modules."""

try:
    import haystack  # noqa: F401
except ImportError as error:
    raise ImportError(
        "the Haystack components of e2rank need Haystack: pip install 'e2rank-rag[haystack]'"
    ) from error
