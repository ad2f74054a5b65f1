"""The user's verbs: run, export, fuse, measure, report, and the command line over them."""
