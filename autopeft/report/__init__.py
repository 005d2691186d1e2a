"""The report of a run: one HTML file that opens offline, the front as CSV, and a small picture of it as SVG."""

from autopeft.report.context import Context, Section
from autopeft.report.finalists import COLUMNS, table, verdict
from autopeft.report.front_csv import write_csv
from autopeft.report.front_svg import front_svg
from autopeft.report.render import SECTIONS, render

__all__ = ["COLUMNS", "SECTIONS", "Context", "Section", "front_svg", "render", "table", "verdict", "write_csv"]
