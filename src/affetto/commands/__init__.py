"""The command line, a file per family of verbs: each reads its options and calls one function of the library."""
