"""Labels by a teacher: a chat model or a cross-encoder orders the documents of training lists."""
