"""The command line, a file per family of verbs: options in, one function of the library called"""
