"""All areas, in the order of docs/errors.md."""

from calibration import bad_calibration
from cli import bad_ranks
from evaluation import bad_evaluation, bad_held_out, bad_predictions
from evaluation.tasks import bad_tasks
from formats import bad_layouts, bad_outputs
from model import bad_blocks, bad_models, bad_tensors, bad_weight_files
from recipe import bad_recipes
from workflows import (
    bad_benches,
    bad_comparisons,
    bad_exports,
    bad_generation,
    bad_inspections,
    bad_pushes,
    bad_reports,
    bad_sweeps,
)

AREAS = (
    bad_weight_files.AREA,
    bad_models.AREA,
    bad_tensors.AREA,
    bad_recipes.AREA,
    bad_blocks.AREA,
    bad_calibration.AREA,
    bad_outputs.AREA,
    bad_layouts.AREA,
    bad_evaluation.AREA,
    bad_tasks.AREA,
    bad_predictions.AREA,
    bad_comparisons.AREA,
    bad_reports.AREA,
    bad_exports.AREA,
    bad_pushes.AREA,
    bad_held_out.AREA,
    bad_inspections.AREA,
    bad_generation.AREA,
    bad_benches.AREA,
    bad_sweeps.AREA,
    bad_ranks.AREA,
)
