"""What LeetCode gives to every solution, written anew: the usual imports, list and tree nodes.

`LEETCODE` runs in the solution's process before the code.  `LEETCODE_TESTS` runs in the test's process: data
sets in this format build nodes with `list_node` and `tree_node` and compare them with `is_same_list` and
`is_same_tree`.  Nodes travel by value between the two, so the expected ones are made and compared on the
test's side alone.
"""

from __future__ import annotations

LEETCODE_RECORDS = ("ListNode", "TreeNode")
TEST_NAMES = ("list_node", "tree_node", "is_same_list", "is_same_tree", *LEETCODE_RECORDS)

_NODES = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next


class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right
"""

LEETCODE = (
    """
import array, bisect, collections, copy, datetime, functools, heapq, itertools, math, operator, queue, random
import re, statistics, string, sys
from typing import *
from functools import *
from collections import *
from itertools import *
from heapq import *
from bisect import *
from string import *
from operator import *
from math import *
from copy import copy, deepcopy
from queue import LifoQueue, PriorityQueue, Queue
from random import choice, randint, randrange, shuffle, uniform
from builtins import *
"""
    + _NODES
)

LEETCODE_TESTS = (
    _NODES
    + '''

def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head


def is_same_list(first, second):
    while isinstance(first, ListNode) and isinstance(second, ListNode):
        if first.val != second.val:
            return False
        first, second = first.next, second.next
    return first is None and second is None


def tree_node(values):
    """Level order, with None for an absent child."""
    if not values or values[0] is None:
        return None
    root = TreeNode(values[0])
    waiting, rest = [root], iter(values[1:])
    for node in waiting:
        for side in ("left", "right"):
            value = next(rest, None)
            if value is not None:
                setattr(node, side, TreeNode(value))
                waiting.append(getattr(node, side))
    return root


def is_same_tree(first, second):
    waiting = [(first, second)]
    while waiting:
        first, second = waiting.pop()
        if first is None and second is None:
            continue
        if not (isinstance(first, TreeNode) and isinstance(second, TreeNode)):
            return False
        if first.val != second.val:
            return False
        waiting += [(first.left, second.left), (first.right, second.right)]
    return True
'''
)
