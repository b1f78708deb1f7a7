#!/usr/bin/env python3
"""A small world for actloom: a corridor of rooms with lamps, all of which must be put out.

Pulling the cord in a room switches the lamps of that room and of the rooms beside it; from a room one sees no farther
than the rooms beside it. The program speaks the command environment's protocol: one JSON object a line on stdin, one
answer a line on stdout. Standard library only.
"""

import json
import random
import sys
from collections import deque

ROOMS = ["cellar", "kitchen", "hall", "library", "attic"]
ACTIONS = ["go down", "go up", "pull cord", "wait"]
TEST_TASKS = 50


class World:
    """One task: where one is, and which lamps burn."""

    def __init__(self, split, index, seed):
        # the same task is always the same world
        draw = random.Random(f"{split}/{index}/{seed}")
        self.rooms = 3 if split == "train" and draw.random() < 0.5 else len(ROOMS)
        self.place = draw.randrange(self.rooms)
        # pulling cords from the dark reaches only worlds that can be put out
        self.lamps = 0
        while self.lamps == 0:
            for room in range(self.rooms):
                if draw.random() < 0.5:
                    self.lamps = pulled(self.lamps, room, self.rooms)
        self.most = self.lamps.bit_count()

    def told(self):
        def lamp(room):
            return "a lamp burns" if self.lamps >> room & 1 else "it is dark"

        parts = [f"You are in the {ROOMS[self.place]}; {lamp(self.place)}."]
        for where, room in (("Below", self.place - 1), ("Above", self.place + 1)):
            if 0 <= room < self.rooms:
                parts.append(f"{where} you see the {ROOMS[room]}; {lamp(room)} there.")
        return " ".join(parts)

    def admissible(self):
        possible = {"pull cord", "wait"}
        if self.place > 0:
            possible.add("go down")
        if self.place + 1 < self.rooms:
            possible.add("go up")
        return sorted(possible)

    def act(self, action):
        """Whether the action was possible."""
        if action not in self.admissible():
            return False
        self.place, self.lamps = moved(self.place, self.lamps, action, self.rooms)
        return True

    def score(self):
        return max(0.0, 1.0 - self.lamps.bit_count() / self.most)

    def expert(self):
        """The first action of a shortest plan."""
        if self.lamps == 0:
            return None
        seen = {(self.place, self.lamps)}
        front = deque([(self.place, self.lamps, None)])
        while front:
            place, lamps, first = front.popleft()
            for action in ACTIONS[:3]:
                state = moved(place, lamps, action, self.rooms)
                if state[1] == 0:
                    return first or action
                if 0 <= state[0] < self.rooms and state not in seen:
                    seen.add(state)
                    front.append((*state, first or action))
        return None


def pulled(lamps, room, rooms):
    for switched in (room - 1, room, room + 1):
        if 0 <= switched < rooms:
            lamps ^= 1 << switched
    return lamps


def moved(place, lamps, action, rooms):
    if action == "pull cord":
        return place, pulled(lamps, place, rooms)
    return place + {"go down": -1, "go up": 1, "wait": 0}[action], lamps


def hello(_):
    return {
        "protocol": 1,
        "name": "lamps",
        "version": "1",
        # as many training tasks as are asked for, and a list of test tasks
        "splits": [{"name": "train", "tasks": None}, {"name": "test", "tasks": TEST_TASKS}],
        "admissible": True,
        "expert": True,
        "deterministic": True,
    }


class Program:
    def __init__(self):
        self.world = None

    def reset(self, request):
        self.world = World(request["split"], request["index"], request["seed"])
        goal = "put out all lamps."
        return {
            "observation": f"{self.world.told()}\n\nYour task is to: {goal}",
            "goal": goal,
            "kind": f"{self.world.rooms} rooms",
        }

    def step(self, request):
        before = self.world.score()
        valid = self.world.act(request["action"])
        won = self.world.lamps == 0
        return {
            "observation": self.world.told() if valid else "Nothing happens.",
            "reward": self.world.score() - before,
            "score": self.world.score(),
            "done": won,
            "won": won,
            "valid": valid,
        }

    def admissible(self, _):
        return {"actions": self.world.admissible()}

    def expert(self, _):
        return {"action": self.world.expert()}


def main():
    program = Program()
    calls = {
        "hello": hello,
        "reset": program.reset,
        "step": program.step,
        "admissible": program.admissible,
        "expert": program.expert,
    }
    for line in sys.stdin:
        request = json.loads(line)
        if request["call"] == "close":
            break
        call = calls.get(request["call"])
        answer = call(request) if call else {"error": f"unknown call {request['call']!r}"}
        print(json.dumps({"id": request["id"], **answer}), flush=True)


if __name__ == "__main__":
    main()
