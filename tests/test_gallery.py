"""The check catches every broken verifier of the gallery by the finding that is meant for it, and accuses no sound one."""

import json
from pathlib import Path

import gallery
import pytest

from r3core import Task, TaskError
from r3core.check import check_task
from r3core.config import Limits

LIMITS = Limits(seconds=1, memory_mb=256, workers=2)
SOUND = [
    gallery.Sound,
    gallery.Tagged,
    gallery.Json,
    gallery.YesOrNo,
    gallery.Words,
    gallery.NoReference,
]
BROKEN: list[tuple[type[Task], str]] = [
    (gallery.Substring, "retracted"),
    (gallery.Within, "prefix of the answer"),
    (gallery.FirstNumber, "right then wrong"),
    (gallery.LastNumber, "wrong then right"),
    (gallery.AnyLine, "right then wrong"),
    (gallery.OnlyTheBeginning, "right then wrong"),
    (gallery.OnlyTheEnd, "wrong then right"),
    (gallery.LastTag, "wrong then right"),
    (gallery.AnythingInTheTag, "contradicting inside"),
    (gallery.Prefix, "prefix of the answer"),
    (gallery.Similar, "near number"),
    (gallery.Wildcard, "wildcards"),
    (gallery.Tolerant, "near number"),
    (gallery.OneOff, "near number"),
    (gallery.NotANumber, "not a number"),
    (gallery.Claims, "fake verdict"),
    (gallery.Calculates, "prompt echoed"),
    (gallery.LongIsGood, "one megabyte"),
    (gallery.IgnoresExample, "another's answer"),
    (gallery.DigitsOfAnyScript, "look-alikes"),
    (gallery.Compatible, "look-alikes"),
    (gallery.Invisible, "zero-width"),
    (gallery.Uncommented, "hidden in a comment"),
    (gallery.ErrorsPass, "empty"),
    (gallery.Evaluates, "code in a response is not run"),
    (gallery.EvaluatesWithoutBuiltins, "power bomb"),
    (gallery.Counts, "the same verdict again"),
    (gallery.RemembersTheLast, "the same verdict in another order"),
    (gallery.CachesByResponse, "the same verdict in another order"),
    (gallery.OnlyOnce, "the same verdict again"),
    (gallery.UsesUpTheExample, "spaces around"),
    (gallery.Guesses, "the same verdict again"),
    (gallery.EveryOtherDay, "the same verdict at another time"),
    (gallery.Weekend, "the same verdict at another time"),
    (gallery.Expires, "the same verdict at another time"),
    (gallery.OrderOfASet, "the same verdict in a fresh process"),
    (gallery.LongNumbers, "huge numbers"),
    (gallery.Infinite, "huge numbers"),
    (gallery.Recursive, "deep nesting"),
    (gallery.Encodes, "a verdict for every text"),
    (gallery.SlowPattern, "one megabyte"),
    (gallery.ExplosivePattern, "one megabyte"),
    (gallery.EatsMemory, "one megabyte"),
    (gallery.PrintsMuch, "one megabyte"),
    (gallery.Exits, "empty"),
    (gallery.Waives, "huge numbers"),
    (gallery.WrongReference, "references of `train` pass"),
    (gallery.WrongVariants, "the task's variants"),
    (gallery.WrongFixtures, "what must pass"),
    (gallery.WrongFixtures, "what must fail"),
    (gallery.SharedProblem, "no problem is in two splits"),
    (gallery.SharedId, "ids are unique"),
    (gallery.Shuffled, "the same problems when loaded again"),
    (gallery.OrderedByHash, "the same problems in a fresh process"),
    (gallery.NoTest, "train and test have problems"),
]
