"""Which part of a copy stands for which part of its original."""

from typing import Any


class Memo:
    """
    The parts of a copy by those of its original, while the copy is made. Containers are known after that too, so that a later
    copy fills them again: every new one adds to what Python's garbage collection looks through.

    :param previous: The memo of an earlier copy that is not needed any more
    """

    def __init__(self, previous: "Memo | None") -> None:
        # by the id of the original, which is kept, so that it stays its id
        self._made: dict[int, Any] = {}
        self._originals: list[Any] = []
        self._containers: dict[int, Any] = {}
        self._original_containers: list[Any] = []
        self._spare = {} if previous is None else previous._containers

    def made(self, obj: Any) -> Any:
        """
        :param obj: A part of the original
        :return: What stands for it; None if nothing does yet
        """
        return self._made.get(id(obj))

    def before(self, obj: Any) -> Any:
        """
        :param obj: A container in the original
        :return: What stood for it in the earlier copy, whatever became of it since; None if nothing did
        """
        return self._spare.get(id(obj))

    def remember(self, obj: Any, made: Any) -> Any:
        """
        :param obj: A part of the original
        :param made: What is to stand for it
        :return: The same
        """
        self._made[id(obj)] = made
        self._originals.append(obj)
        return made

    def keep(self, obj: Any, made: Any) -> Any:
        """
        :param obj: A container in the original
        :param made: What is to stand for it, in later copies too
        :return: The same
        """
        self._containers[id(obj)] = made
        self._original_containers.append(obj)
        return self.remember(obj, made)

    def forget(self) -> None:
        """Forget all but the containers: the copy is made."""
        self._made, self._originals, self._spare = {}, [], {}
