"""What a model knows: facts asked as cloze questions."""
