"""Tables and figures from run folders. Import this package inside a command only: it loads pandas and matplotlib."""

from sspo_cli.report.page import write_report

__all__ = ["write_report"]
