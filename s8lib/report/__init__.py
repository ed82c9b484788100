"""What a run looks like: tables, pictures, the video and the model card, made from what the run left on disk."""

from s8lib.report.architecture import architecture
from s8lib.report.card import make_card
from s8lib.report.curves import curves
from s8lib.report.evaluation import Evaluation, evaluation
from s8lib.report.guesses import guesses
from s8lib.report.live import LiveCurves
from s8lib.report.mistakes import confident_mistakes, reliability, superclass_confusion, worst_classes
from s8lib.report.reference import reference_runs
from s8lib.report.samples import sample_grid
from s8lib.report.schedule import schedule, schedule_table
from s8lib.report.style import save
from s8lib.report.summary import MissingPackage, summary
from s8lib.report.tables import contents, epoch_table, overview
from s8lib.report.video import video
from s8lib.report.write import read, was_trained_on, write, write_log

__all__ = [
    "Evaluation",
    "LiveCurves",
    "MissingPackage",
    "architecture",
    "confident_mistakes",
    "contents",
    "curves",
    "epoch_table",
    "evaluation",
    "guesses",
    "make_card",
    "overview",
    "read",
    "reference_runs",
    "reliability",
    "sample_grid",
    "save",
    "schedule",
    "schedule_table",
    "summary",
    "superclass_confusion",
    "video",
    "was_trained_on",
    "worst_classes",
    "write",
    "write_log",
]
