"""How running out of memory looks. By name, so that torch need not be loaded to ask."""


class NoRoomNow(Exception):
    """What is loaded is in use; there is room when one of the jobs at work has ended."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
