import os

# Threads that share a core wait for each other at every operation; one is quicker for tiny models, however busy the
# machine is. Read by torch when it is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # workers see to that themselves
