"""The peer of peak.lua for Python scripts. Run: python3 tests/bench/peak.py script.py arguments"""
import runpy
import sys

del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print("peak_mb %.1f" % (int(line.split()[1]) / 1024))
