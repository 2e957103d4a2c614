"""Keys of the store through which ranks and their launcher exchange reports."""

PRESENT = "sspo/present-{}/{}"  # program of a rank that waits for the others to join it, by their number and its own
FAILED = "sspo/failed/{}"  # why a rank, given by its number, ends
NOTICED = "sspo/noticed/{}"  # set by a rank that has lost another one
ALIVE = "sspo/alive/{}"  # what a rank's heartbeat has counted
PROCESS = "sspo/process/{}"  # its process and machine
FOLDER = "sspo/folder"  # the run's, which the first rank writes
# They begin the reports of a rank that has lost another one, of one that was asked to stop, and of one whose end needs words
# that the rank does not print itself.
LOST, STOPPED, DIED = "lost: ", "stopped: ", "died: "
