# Made from ../aio/__init__.py by make_sync.py: change that.
