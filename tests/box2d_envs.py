"""Envs with all kinds of Box2D's objects, and interrupts while their worlds are written."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import Box2D
from Box2D import b2

from sb3_hybrid_grpo.branching import box2d_pointers
from tests.stateful_envs import Noisy


class Crowd(Noisy):
    """Bodies that come and go, with userData, definitions and vectors."""

    def __init__(self) -> None:
        super().__init__(Crowd.crowd)  # type: ignore[arg-type]
        self.world = Box2D.b2World(gravity=(0, -1))
        shape = Box2D.b2PolygonShape(box=(0.5, 0.5))
        self.definition = Box2D.b2FixtureDef(shape=shape, density=1.0)
        self.ground = self.world.CreateStaticBody(shapes=Box2D.b2EdgeShape(vertices=[(-9, 0), (9, 0)]))
        self.pushed = Box2D.b2Vec2(0.0, 0.0)
        self.bodies: list[Any] = []
        self.marks: list[list[float]] = [[0.0]]

    def crowd(self) -> float:
        for _ in range(1 + int(abs(self.x) * 9) % 9):
            self.definition.shape.SetAsBox(0.1 + abs(self.x) % 1, 0.3)
            body = self.world.CreateDynamicBody(position=(self.x % 5, len(self.bodies)), fixtures=self.definition)
            body.userData = [self.x]
            self.bodies.append(body)
        while len(self.bodies) > 40:
            self.world.DestroyBody(self.bodies.pop(int(abs(self.x) * 7) % 30))
        self.ground.userData = self.marks[0] = [self.x]
        self.pushed += Box2D.b2Vec2(self.x, 1.0)
        self.world.Step(0.05, 8, 3)
        seen = sum(body.position.x + body.angle + body.userData[0] for body in self.bodies)
        return float(seen + self.pushed.x + self.ground.userData[0] + self.definition.shape.vertices[0][0])


class Touches(b2.contactListener):  # type: ignore[misc]
    """Counts contacts in its env, and wants an argument."""

    def __init__(self, env: "Machine") -> None:
        b2.contactListener.__init__(self)
        self.env = env

    def BeginContact(self, contact: Any) -> None:
        self.env.touches += 1


class Beam(b2.rayCastCallback):  # type: ignore[misc]
    """Remembers what it hits, as the vector that it was given, which is gone when the callback returns."""

    def ReportFixture(self, fixture: Any, point: Any, normal: Any, fraction: float) -> float:
        self.fraction, self.point = fraction, point
        return fraction


class Machine(Noisy):
    """A motor among bodies that come and go, a listener, a beam, and vectors that follow a body. No userData."""

    def __init__(self) -> None:
        super().__init__(Machine.turn)  # type: ignore[arg-type]
        self.world = Box2D.b2World(gravity=(0, -1))
        self.definition = Box2D.b2FixtureDef(shape=Box2D.b2PolygonShape(box=(0.5, 0.5)), density=1.0)
        self.ground = self.world.CreateStaticBody(shapes=Box2D.b2EdgeShape(vertices=[(-9, 0), (9, 0)]))
        self.pushed = Box2D.b2Vec2(0.0, 0.0)
        self.bodies: list[Any] = []
        self.touches = 0
        self.world.contactListener = Touches(self)
        round_one = b2.fixtureDef(shape=b2.circleShape(radius=1), density=2)
        self.wheel = self.world.CreateDynamicBody(position=(0, 3), fixtures=round_one)
        self.tyre = self.wheel.fixtures[0]
        self.motor = self.world.CreateRevoluteJoint(
            bodyA=self.ground, bodyB=self.wheel, anchor=(0, 3), enableMotor=True, maxMotorTorque=50, motorSpeed=1
        )
        self.chassis = self.world.CreateDynamicBody(position=(0, 4), fixtures=self.definition)
        rail = self.world.CreatePrismaticJoint(bodyA=self.ground, bodyB=self.chassis, anchor=(0, 4), axis=(1, 0))
        self.gear = self.world.CreateGearJoint(bodyA=self.wheel, bodyB=self.chassis, joint1=self.motor, joint2=rail, ratio=0.5)
        self.where, self.spin = self.wheel.position, self.wheel.linearVelocity
        self.beam = Beam()

    def crowd(self) -> float:
        for index in range(1 + int(abs(self.x) * 9) % 9):
            self.definition.shape.SetAsBox(0.1 + abs(self.x) % 1, 0.3)
            place = (self.x % 5, len(self.bodies))
            body = self.world.CreateDynamicBody(position=place, fixtures=self.definition, active=index % 3 > 0)
            body.load = self.x
            self.bodies.append(body)
        if len(self.bodies) > 1 and self.x > 0.5:
            first, last = self.bodies[0], self.bodies[-1]
            self.world.CreateRopeJoint(bodyA=first, bodyB=last, maxLength=3)
        while len(self.bodies) > 40:
            self.world.DestroyBody(self.bodies.pop(int(abs(self.x) * 7) % 30))
        self.pushed += Box2D.b2Vec2(self.x, 1.0)
        self.world.Step(0.05, 8, 3)
        return float(sum(body.position.x + body.angle + body.load for body in self.bodies) + self.pushed.x)

    def turn(self) -> float:
        self.motor.motorSpeed = self.x
        self.tyre.friction = abs(self.x)
        self.beam.fraction = 1.0
        self.world.RayCast(self.beam, (-9, 1), (9, 2))
        seen = self.crowd() + self.touches + self.beam.fraction + self.motor.angle + self.tyre.friction
        return float(seen + self.where.x + self.spin.y + self.chassis.position.x)


@contextmanager
def interrupted(n_calls: int) -> Iterator[None]:
    """Let the user interrupt after so many times that memory is written."""
    left = [n_calls]

    def counted(write: Any) -> Any:
        def count(*args: Any) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            write(*args)

        return count

    library = mock.MagicMock(wraps=ctypes)
    library.memmove = counted(ctypes.memmove)
    library.pythonapi, library.py_object = ctypes.pythonapi, ctypes.py_object
    with (
        mock.patch("sb3_hybrid_grpo.branching.box2d_memory.ctypes", library),
        mock.patch("sb3_hybrid_grpo.branching.box2d_copies.write", counted(box2d_pointers.write)),
    ):
        yield
