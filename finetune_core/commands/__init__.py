"""What each command of the command line does. Results go to stdout, progress and problems to stderr."""
