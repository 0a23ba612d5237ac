"""Who trains when and how much, and when the server takes its next step."""

from fl.server.schedulers.base import Answer, Assignment, Decision, Limits, Scheduler, View
from fl.server.schedulers.registry import open_scheduler

__all__ = ["Answer", "Assignment", "Decision", "Limits", "Scheduler", "View", "open_scheduler"]
