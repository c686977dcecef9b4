"""What lies in the folders of models that an operator allowed, and whether it is sound: judged by content."""
