"""A model that is whole and checked goes to its place in the model folder, in one step."""

import errno
import os
from pathlib import Path

from instructors.models import Model, ModelFolder, inside
from protocol.errors import AtelierError, Forbidden, RequestConflict

THERE = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


def put_in_place(model: Model, root: Path) -> None:
    """Until then no request sees it, and after a loss of power it is there whole or not at all.

    Raises RequestConflict where something else has its name and version, Forbidden where a link leads out; OSError.
    """
    name, _, version = model.model_id.partition(":")
    target = root / name / version
    if name in ModelFolder(root).names():  # those in versions are listed with them
        raise RequestConflict("There is a model of this name that comes in no versions; choose another name.")
    if not inside(target.parent, root):
        raise Forbidden("A link in the place of this model leads out of the model folder.")
    try:
        target.parent.mkdir(exist_ok=True)
    except FileExistsError:
        raise RequestConflict("There is a file of this name in the model folder; choose another name.") from None
    for path in (*model.path.rglob("*"), model.path):  # a fetched file is on the disk already, a made one is not
        _sync(path)
    try:
        model.path.rename(target)
    except OSError as error:
        if error.errno not in THERE:
            raise
        if not _is_same(model, root):  # else an earlier attempt got as far as this
            raise RequestConflict("This version of the model is there already, with other files.") from None
    for folder in (target.parent, root):
        _sync(folder)


def _is_same(model: Model, root: Path) -> bool:
    try:
        return ModelFolder(root).find(model.model_id).content_hash == model.content_hash
    except AtelierError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
