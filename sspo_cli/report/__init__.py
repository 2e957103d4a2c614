"""Tables and figures from run folders. Imports pandas and matplotlib, so import it inside the command that needs it."""

from sspo_cli.report.page import write_report

__all__ = ["write_report"]
