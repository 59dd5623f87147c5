"""Pictures and pages that a person looks at; head-less."""

from msf.report.curves import risk_coverage_figure
from msf.report.figures import write_figure, write_pictures
from msf.report.findings import Findings
from msf.report.grids import certainty_grid, class_grid, real_and_generated_grid, reconstruction_grid
from msf.report.page import report_page
from msf.report.summary import write_summary

__all__ = [
    "Findings",
    "certainty_grid",
    "class_grid",
    "real_and_generated_grid",
    "reconstruction_grid",
    "report_page",
    "risk_coverage_figure",
    "write_figure",
    "write_pictures",
    "write_summary",
]
