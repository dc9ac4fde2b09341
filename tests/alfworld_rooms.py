"""Small games in ALFWorld's file format, written for these tests: six chores in one room.

Domain, problem and grammar are our own, with the names of actions and objects that ALFWorld's
texts have. A room has a table, a shelf, cabinets, the three appliances and a desk with a lamp.
"""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stepagent.tasks.alfworld.games import Generation, prepare

KINDS = {
    "pick": "pick_and_place_simple-Apple-None-Shelf-1",
    "examine": "look_at_obj_in_light-Apple-None-DeskLamp-1",
    "clean": "pick_clean_then_place_in_recep-Apple-None-Shelf-1",
    "heat": "pick_heat_then_place_in_recep-Apple-None-Shelf-1",
    "cool": "pick_cool_then_place_in_recep-Apple-None-Shelf-1",
    "pick_two": "pick_two_obj_and_place-Apple-None-Shelf-1",
}
"""Folder names of tasks by the short name of their type."""

GOALS = {
    "pick": "(stored ?o ?r)",
    "examine": "(held me ?o) (shone DeskLamp_bar_1) (near Desk_bar_1)",
    "clean": "(stored ?o ?r) (cleaned ?o)",
    "heat": "(stored ?o ?r) (heated ?o)",
    "cool": "(stored ?o ?r) (cooled ?o)",
    "pick_two": "(stored ?o ?r) (exists (?p - object) (and (not (= ?o ?p)) (ofkind ?p appletype)"
    " (stored ?p ?r)))",
}

DOMAIN = """
(define (domain chores)
 (:requirements :adl :typing)
 (:types agent location receptacle object otype rtype)
 (:predicates
  (stands ?a - agent ?l - location) (placed ?r - receptacle ?l - location)
  (near ?r - receptacle) (stored ?o - object ?r - receptacle) (held ?a - agent ?o - object)
  (busy ?a - agent) (openable ?r - receptacle) (opened ?r - receptacle) (fixed ?o - object)
  (ofkind ?o - object ?t - otype) (rkind ?r - receptacle ?t - rtype) (looked ?a - agent)
  (cleaned ?o - object) (heated ?o - object) (cooled ?o - object) (shone ?o - object))
 (:action look :parameters (?a - agent ?l - location)
  :precondition (stands ?a ?l) :effect (looked ?a))
 (:action inventory :parameters (?a - agent) :precondition () :effect (looked ?a))
 (:action GotoLocation
  :parameters (?a - agent ?lStart - location ?lEnd - location ?r - receptacle)
  :precondition (and (stands ?a ?lStart) (placed ?r ?lEnd) (not (near ?r)))
  :effect (and (not (stands ?a ?lStart)) (stands ?a ?lEnd) (near ?r)
   (forall (?x - receptacle) (when (near ?x) (not (near ?x))))))
 (:action OpenObject :parameters (?a - agent ?r - receptacle)
  :precondition (and (near ?r) (openable ?r) (not (opened ?r))) :effect (opened ?r))
 (:action CloseObject :parameters (?a - agent ?r - receptacle)
  :precondition (and (near ?r) (opened ?r)) :effect (not (opened ?r)))
 (:action PickupObject :parameters (?a - agent ?o - object ?r - receptacle)
  :precondition (and (near ?r) (stored ?o ?r) (not (fixed ?o)) (not (busy ?a))
   (or (not (openable ?r)) (opened ?r)))
  :effect (and (not (stored ?o ?r)) (held ?a ?o) (busy ?a)))
 (:action PutObject :parameters (?a - agent ?o - object ?r - receptacle)
  :precondition (and (near ?r) (held ?a ?o) (or (not (openable ?r)) (opened ?r)))
  :effect (and (stored ?o ?r) (not (held ?a ?o)) (not (busy ?a))))
 (:action CleanObject :parameters (?a - agent ?o - object ?r - receptacle)
  :precondition (and (near ?r) (held ?a ?o) (rkind ?r sinktype)) :effect (cleaned ?o))
 (:action HeatObject :parameters (?a - agent ?o - object ?r - receptacle)
  :precondition (and (near ?r) (held ?a ?o) (rkind ?r microwavetype)) :effect (heated ?o))
 (:action CoolObject :parameters (?a - agent ?o - object ?r - receptacle)
  :precondition (and (near ?r) (held ?a ?o) (rkind ?r fridgetype)) :effect (cooled ?o))
 (:action ToggleObject :parameters (?a - agent ?o - object ?r - receptacle)
  :precondition (and (near ?r) (stored ?o ?r) (fixed ?o)) :effect (shone ?o)))
"""

ACTIONS = {
    "look": ("look", "#look#"),
    "inventory": ("inventory", "#carried#"),
    "GotoLocation": ("go to [{r.name | placed(r:receptacle, lend:location)}]", "#arrived#"),
    "OpenObject": ("open {r}", "You open the {r.name}. #inside#"),
    "CloseObject": ("close {r}", "You close the {r.name}."),
    "PickupObject": ("take {o} from {r}", "You pick up the {o.name} from the {r.name}."),
    "CleanObject": ("clean {o} with {r}", "You clean the {o.name} using the {r.name}."),
    "HeatObject": ("heat {o} with {r}", "You heat the {o.name} using the {r.name}."),
    "CoolObject": ("cool {o} with {r}", "You cool the {o.name} using the {r.name}."),
    "ToggleObject": ("use {o}", "You turn on the {o.name}."),
}

PUT: dict[Generation, tuple[str, str]] = {
    "put": ("put {o} in/on {r}", "You put the {o.name} in/on the {r.name}."),
    "move": ("move {o} to {r}", "You move the {o.name} to the {r.name}."),
}

LISTED = "[{o.indefinite + ' ' + o.name | stored(o:object, r:receptacle)}]"


def game(
    kind: str = "heat", generation: Generation = "move", *, cabinets: int = 2, **changed: Any
) -> dict[str, Any]:
    """A game with that many cabinets; an apple is in the last one and another one on the table."""
    return {
        "pddl_domain": DOMAIN,
        "grammar": grammar(kind, generation),
        "pddl_problem": problem(kind, cabinets),
        "solvable": True,
    } | changed


def grammar(kind: str, generation: Generation) -> str:
    """Texts of the room and of all actions."""
    place = "{r.name}" if generation == "move" else "{lend.name}"
    rules = {
        "intro": f"-= Welcome to the test! =-\n\n#look#\n\nYour task is to: {kind} some apple.",
        "look": "You are in the middle of a room. Looking quickly around you, you see "
        "[{#thing(r)# | placed(r:receptacle, l:location)}].",
        "thing(r)": "{r.indefinite} {r.name or r.id}",
        "arrived": f"You arrive at {place}. #inside#",
        "list_empty": "nothing",
        "list_separator": ", ",
        "list_last_separator": ", and ",
    }
    choices = {
        "inside": [
            ("openable(r:receptacle) & opened(r:receptacle)",
             f"The {{r.name}} is open. In it, you see {LISTED}."),
            ("openable(r:receptacle)", "The {r.name} is closed."),
            ("", f"On the {{r.name}}, you see {LISTED}."),
        ],
        "carried": [
            ("busy(a:agent)", "You are carrying: [{o.indefinite + ' ' + o.name | "
             "held(a:agent, o:object)}]."),
            ("", "You are not carrying anything."),
        ],
    }  # fmt: skip
    rules_json = {name: [{"rhs": text}] for name, text in rules.items()} | {
        name: [{"condition": condition, "rhs": text} for condition, text in texts]
        for name, texts in choices.items()
    }
    actions = "\n".join(
        f'action {name} {{\n    template :: "{template}";\n    feedback :: "{feedback}";\n}}'
        for name, (template, feedback) in (ACTIONS | {"PutObject": PUT[generation]}).items()
    )
    return f'grammar :: """\n{json.dumps(rules_json, indent=1)}\n""";\n\n{actions}\n'


def problem(kind: str, cabinets: int) -> str:
    """The room of a game."""
    places = ["DiningTable", "Shelf", "Microwave", "Fridge", "Desk"]
    names = ["Sink_bar_1_bar_SinkBasin", *(f"{place}_bar_1" for place in places)]
    names += [f"Cabinet_bar_{number}" for number in range(1, cabinets + 1)]
    doors = [n for n in names if n.split("_")[0] in ("Microwave", "Fridge", "Cabinet")]
    kinds = {name: f"{name.split('_')[0].lower()}type" for name in names}
    facts = [f"(placed {name} loc_bar_{number})" for number, name in enumerate(names, start=1)]
    facts += [f"(rkind {name} {kind})" for name, kind in kinds.items()]
    facts += [f"(openable {name})" for name in doors]
    facts += ["(stands me loc_bar_0)", f"(stored Apple_bar_1 {names[-1]})"]
    facts += ["(stored Apple_bar_2 DiningTable_bar_1)", "(stored DeskLamp_bar_1 Desk_bar_1)"]
    facts += ["(fixed DeskLamp_bar_1)", "(ofkind Apple_bar_1 appletype)"]
    facts += ["(ofkind Apple_bar_2 appletype)", "(ofkind DeskLamp_bar_1 desklamptype)"]
    locations = " ".join(f"loc_bar_{number}" for number in range(len(names) + 1))
    return f"""
(define (problem room) (:domain chores)
 (:objects me - agent {locations} - location {" ".join(names)} - receptacle
  Apple_bar_1 Apple_bar_2 DeskLamp_bar_1 - object appletype desklamptype - otype
  {" ".join(sorted(set(kinds.values())))} - rtype)
 (:init {" ".join(facts)})
 (:goal (exists (?o - object ?r - receptacle) (and (ofkind ?o appletype) {_place(kind)}
  {GOALS[kind]}))))
"""


def _place(kind: str) -> str:
    return "" if kind == "examine" else "(rkind ?r shelftype)"


def write(folder: Path, split: str, name: str, game: dict[str, Any] | bytes) -> Path:
    """A game file in the official layout; `name` is `<task>/<trial>`."""
    file = folder / "json_2.1.1" / split / name / "game.tw-pddl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(game if isinstance(game, bytes) else json.dumps(game).encode())
    return file


def write_all(folder: Path, generation: Generation = "move") -> None:
    """Ten games of training, one of them in dev, and the six kinds for testing."""
    for number in range(10):
        data = game("heat", generation, cabinets=1 + number)
        write(folder, "train", f"{KINDS['heat']}/trial_{number}", data)
    for kind, task in KINDS.items():
        write(folder, "valid_seen", f"{task}/trial_test", game(kind, generation))


@cache
def _temporary() -> "TemporaryDirectory[str]":
    return TemporaryDirectory()  # removed when the tests end


@cache
def ready() -> Path:
    """A folder with `write_all` as the task reads it."""
    source, out = (Path(_temporary().name) / name for name in ("source", "out"))
    write_all(source)
    out.mkdir()
    prepare(source, out, skip_invalid=False)
    return out
