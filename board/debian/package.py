#!/usr/bin/env python3
"""Make a Debian package out of a static binary, on any machine with dpkg: package.py BINARY ARCHITECTURE FOLDER

ARCHITECTURE is Debian's word: arm64, armhf, amd64. The list of files and the words of the package are those of
[package.metadata.deb] in Cargo.toml, so that `cargo deb` makes the same. Prints the path of the package.
"""
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main(binary, architecture, folder):
    with open(os.path.join(TOP, "Cargo.toml"), "rb") as f:
        package = tomllib.load(f)["package"]
    deb = package["metadata"]["deb"]
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        for source, target, mode in deb["assets"]:
            # The one that is built, wherever that was.
            found = [binary] if source == "target/release/snug" else sorted(glob.glob(os.path.join(TOP, source)))
            if not found:
                sys.exit("no file is %s" % source)
            for file in found:
                name = os.path.basename(file if source != "target/release/snug" else "snug")
                at = os.path.join(root, target, name) if target.endswith("/") else os.path.join(root, target)
                os.makedirs(os.path.dirname(at), mode=0o755, exist_ok=True)
                shutil.copyfile(file, at)
                os.chmod(at, int(mode, 8))
        size = sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(root) for name in names)
        control = os.path.join(root, "DEBIAN")
        os.makedirs(control, mode=0o755)
        lines = [
            ("Package", package["name"]),
            ("Version", package["version"]),
            ("Architecture", architecture),
            ("Maintainer", deb["maintainer"]),
            ("Installed-Size", str(size // 1024)),
            ("Depends", deb["depends"]),
            ("Section", deb["section"]),
            ("Priority", deb["priority"]),
            ("Description", package["description"] + "\n " + deb["extended-description"]),
        ]
        with open(os.path.join(control, "control"), "w") as f:
            f.write("".join("%s: %s\n" % line for line in lines))
        for script in ("postinst", "prerm", "postrm"):
            at = os.path.join(control, script)
            shutil.copyfile(os.path.join(TOP, deb["maintainer-scripts"], script), at)
            os.chmod(at, 0o755)
        os.makedirs(folder, exist_ok=True)
        out = os.path.join(folder, "%s_%s_%s.deb" % (package["name"], package["version"], architecture))
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, out], check=True, stdout=subprocess.DEVNULL)
    print(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
