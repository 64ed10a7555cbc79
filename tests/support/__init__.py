"""What tests share, and how the suite stays short.

1. A result that several tests only read is made once for all processes of a test run:
   `made_once`. The fixtures `demo_scene` and `demo_result` are such; a test that
   changes one copies it.
2. A whole run spends two thirds of its time on SIFT and on trials of focal lengths. The
   fixture `remembered` answers both from what another test computed; it is on in
   tests/pipelines, tests/cli and tests/report. Use settings that are in use there
   (`features.max_keypoints=1500`), as others cost anew.
3. A new interpreter that imports torch costs two seconds. Call `run` of the command
   line where the process is not the subject; processes of devices come fast with the
   fixture `forked`.
4. Painting the demo scene costs four seconds: copy `demo_scene`, or paint coarsely as
   tests/demo does.
"""
