"""What an env may offer, and what an engine must offer, for an env to be branched."""

from typing import Any, Protocol, runtime_checkable

Snapshot = Any
"""A saved state. Only the engine that made it knows what is inside."""


@runtime_checkable
class SupportsBranching(Protocol):
    """
    The hook of an env that knows best how to save itself.

    An env (or wrapper) with these two methods is saved and restored through them, and so is all that it wraps;
    the wrappers above it are saved in place. Its ``np_random`` is saved besides, so the hook may leave it out;
    any other generator of random numbers belongs to the state.

    Example::

        class MyEnv(gym.Env):
            def save_state(self):
                return self.simulator.checkpoint()

            def restore_state(self, state):
                self.simulator.load(state)
    """

    def save_state(self) -> Any:
        """
        Save everything that the future of the env depends on.

        :return: The state. It is restored any number of times, so ``restore_state`` must not consume it.
        """

    def restore_state(self, state: Any) -> None:
        """
        Put the env back into a saved state, in place.

        :param state: What ``save_state`` returned earlier, on this same env
        """


class Engine(Protocol):
    """A way to save and restore a whole env with its wrappers."""

    name: str
    """What it is called in messages."""
    own_models: bool
    """Whether each member has an MjModel of its own."""

    def shared_contents(self) -> dict[str, bytes]:
        """
        Read what members share of the env's MjModels, so that a change shows.

        :return: Contents by name; nothing for an env without MuJoCo
        """

    def code(self) -> list[Any]:
        """
        List the code of what it saves, as far as that is written in Python.

        :return: Classes and functions
        """

    def save(self, previous: Snapshot | None = None) -> Snapshot:
        """
        Save the env as it is now.

        :param previous: A snapshot that is not needed any more; its memory may be used again
        :return: The snapshot
        """

    def resave(self, start: Snapshot, previous: Snapshot | None = None) -> Snapshot:
        """
        Save the env again after some steps from a snapshot: only what members that started from it share. What a member made
        in the meantime no other member can reach, and it stays as it is until the member goes on.

        Nothing else may start from such a snapshot than the member that goes on.

        :param start: The snapshot that was restored before the steps
        :param previous: A snapshot that is not needed any more; its memory may be used again
        :return: The snapshot
        """

    def restore(self, snapshot: Snapshot) -> None:
        """
        Put the env back.

        :param snapshot: What ``save`` or ``resave`` returned; it can be restored any number of times
        """


class Cell(Protocol):
    """A way to save and restore one mutable object."""

    def save(self, previous: Any) -> Any:
        """
        Copy the object's contents.

        :param previous: What an earlier call returned and nobody needs any more (its memory may be used again), or None
        :return: The contents
        """

    def resave(self, shared: Any, previous: Any) -> Any:
        """
        Copy the object's contents after some steps from a snapshot, see :meth:`Engine.resave`.

        :param shared: The contents that were restored before the steps
        :param previous: As in :meth:`save`
        :return: The contents
        """

    def restore(self, contents: Any) -> None:
        """
        Write contents back into the object.

        :param contents: What ``save`` returned; it can be restored any number of times
        """
