"""Reading any artifact; nothing of it is run. Imports neither torch nor a runtime."""
