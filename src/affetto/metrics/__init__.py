"""Numbers from a recording and its text alone, and how sure they are: the definitions, without files or models."""
