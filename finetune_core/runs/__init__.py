"""The run folder, the store that reads runs back, and the worker that trains inside the app. Calls training and before."""
