"""``parity node doctor``: what this machine has, what is wrong with it, and which isolation it proves."""

from parity_node.doctor.finding import Finding, FindingResult
from parity_node.doctor.machine import check_machine
from parity_node.doctor.place import check_place
from parity_node.doctor.sandboxes import Sandboxes, examine_sandboxes

__all__ = ["Finding", "FindingResult", "Sandboxes", "check_machine", "check_place", "examine_sandboxes"]
