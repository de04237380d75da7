"""Types whose objects need no saving, and types whose objects cannot be saved."""

import datetime
import decimal
import enum
import fractions
import functools
import logging
import multiprocessing.connection
import multiprocessing.process
import operator
import pathlib
import re
import socket
import subprocess
import threading
import types
import uuid
import weakref

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

# Objects that never change, or whose changes are no part of a simulation. By type only: which *values* change cannot be
# learned from watching an env, rare events are missed.
CONSTANT: tuple[type, ...] = (
    *(int, float, complex, str, bytes, type, range, slice, property, staticmethod, classmethod, enum.Enum),
    *(types.ModuleType, types.CodeType, types.MappingProxyType, types.GenericAlias, types.NotImplementedType),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, weakref.ProxyType, weakref.CallableProxyType),
    *(np.generic, np.dtype, np.ufunc, weakref.ref, re.Pattern, pathlib.PurePath, uuid.UUID, fractions.Fraction),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal),
    *(operator.itemgetter, operator.attrgetter, operator.methodcaller, functools._lru_cache_wrapper),
    *(EnvSpec, logging.Logger, logging.Handler, type(threading.Lock()), type(threading.RLock()), type(Ellipsis)),
)
NUMBERS_AND_TEXTS = (int, float, complex, str, bytes)
CONSTANT_MODULES = ("mujoco", "pygame", "glfw", "OpenGL", "typing")  # models, views and windows; MjData has an engine
CYTHON_FUNCTION = "cython_function_or_method"  # each compiled module brings a type of this name
RECORDS_OF_ENVS = frozenset({"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_metadata", "metadata"})
CHECKERS = (OrderEnforcing, PassiveEnvChecker)
"""Wrappers that remember what they have checked, and change nothing."""

# written in Python, and yet no copy of their attributes brings them back
LIVING: tuple[type, ...] = (
    *(threading.Thread, threading.Event, threading.Condition, threading.Semaphore),
    *(multiprocessing.process.BaseProcess, multiprocessing.connection.Connection, subprocess.Popen, socket.socket),
)


def saves_itself(kind: type) -> bool:
    """
    :param kind: The type of an object
    :return: Whether it is an env with the two methods of :class:`SupportsBranching`
    """
    return issubclass(kind, gym.Env) and hasattr(kind, "save_state") and hasattr(kind, "restore_state")
