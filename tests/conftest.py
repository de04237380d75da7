"""One thread per test process: the tests themselves run in parallel, and results do not depend on the number of cores."""

import torch as th

th.set_num_threads(1)
