#!/usr/bin/python3
"""The checks of tests/lint/run find what they are there for: each test plants one fault in a small clean tree."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

RUN = pathlib.Path(__file__).with_name("run")

TABLE = """# Map

| Folder | holds | may include | foreign library |
|---|---|---|---|
| base | things | - | jansson, uthash |
| loop | loops | base | libev |
| app | all | all but ctl | all |
| ctl | tool | base | - |
"""

HEADER = """/* A thing. Thread: any. */
#ifndef ZT_BASE_X_H
#define ZT_BASE_X_H

/* Makes one. Returns owned. */
struct zt_x *zt_x_new(void);

#endif
"""


class Lint(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.tmp.name)
        self.write("docs/architecture.md", TABLE)
        self.write("include/zt/base/x.h", HEADER)
        self.write("src/base/x.c", '#include "zt/base/x.h"\n#include <stdlib.h>\nint f(void)\n{\n    free(0);\n}\n')
        self.write("src/loop/l.c", '#include "zt/base/x.h"\n#include <ev.h>\n')
        self.write("tests/unit/t.c", "int x;\n")

    def tearDown(self):
        self.tmp.cleanup()

    def write(self, path, text):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def lint(self):
        result = subprocess.run([sys.executable, str(RUN), "--root", str(self.root)], capture_output=True, text=True, timeout=60)
        return result.returncode, result.stdout

    def finds(self, text):
        code, out = self.lint()
        self.assertEqual(code, 1, out)
        self.assertIn(text, out)
        self.assertIn("lint: 1 errors", out)

    def test_clean_tree_passes(self):
        self.assertEqual(self.lint(), (0, "lint: 0 errors, 0 warnings\n"))

    def test_include_upwards(self):
        self.write("src/base/y.c", '#include "zt/loop/l.h"\n')
        self.finds("src/base/y.c:1: layers: base may not include zt/loop/l.h")

    def test_include_in_a_comment_does_not_count(self):
        self.write("src/base/y.c", '/*\n#include "zt/loop/l.h"\n*/\n')
        self.assertEqual(self.lint()[0], 0)

    def test_all_but(self):
        self.write("src/app/a.c", '#include "zt/loop/l.h"\n#include <ev.h>\n#include "zt/ctl/c.h"\n')
        self.finds("src/app/a.c:3: layers: app may not include zt/ctl/c.h")

    def test_private_header_of_another_folder(self):
        self.write("src/app/a.c", '#include "loop/loop_impl.h"\n')
        self.finds("private header loop/loop_impl.h")

    def test_foreign_library(self):
        self.write("src/loop/m.c", "#include <openssl/ssl.h>\n")
        self.finds("loop may not use OpenSSL")

    def test_unknown_folder(self):
        self.write("src/utils/u.c", "int x;\n")
        self.finds("folder utils is not in the table")

    def test_banned_call(self):
        self.write("tests/unit/t.c", 'void f(char *s)\n{\n    /* strcpy( */ g("strcpy(");\n    strcpy(s, s);\n}\n')
        self.finds("tests/unit/t.c:4: banned: strcpy()")

    def test_raw_allocation_outside_base(self):
        self.write("src/loop/m.c", "void f(struct x *s)\n{\n    s->free(s);\n    free(s);\n}\n")
        self.finds("src/loop/m.c:4: banned: free()")

    def test_header_without_thread(self):
        self.write("include/zt/base/x.h", HEADER.replace("Thread: any.", ""))
        self.finds("does not say on which thread")

    def test_header_without_ownership(self):
        self.write("include/zt/base/x.h", HEADER.replace("Returns owned.", ""))
        self.finds("no ownership word")

    def test_function_without_comment(self):
        self.write("include/zt/base/x.h", HEADER.replace("#endif", "void zt_x_go(int n);\n\n#endif"))
        self.finds("zt_x_go and its neighbours have no comment")

    def test_long_function(self):
        self.write("src/base/y.c", "int zt_y_long(int a)\n{\n" + "    a++;\n" * 200 + "}\n")
        self.finds("functions: zt_y_long has 202 lines")

    def test_longish_function_is_a_warning(self):
        self.write("src/base/y.c", "int zt_y_long(int a)\n{\n" + "    a++;\n" * 130 + "}\n")
        self.assertEqual(self.lint(), (0, "src/base/y.c:2: functions: warning: zt_y_long has 132 lines\nlint: 0 errors, 1 warnings\n"))

    def test_long_file(self):
        self.write("src/base/y.c", "int x;\n" * 1001)
        self.finds("files: 1001 lines")


if __name__ == "__main__":
    unittest.main()
