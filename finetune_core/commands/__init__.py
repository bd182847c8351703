"""The functions behind the commands. Results go to stdout, progress and problems to stderr."""
