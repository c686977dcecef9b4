"""What runs on the device thread: the loop, what it lends to tasks, and which quantum is next."""
