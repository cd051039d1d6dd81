"""Pictures over HTTP, for WSGI servers: GET /207?seed=7 is a PNG of class 207. BUNDLE is the bundle's folder."""

import io
import os
from urllib.parse import parse_qs

from nextscale.runtime import Generator, NextscaleError, SessionOptions
from nextscale.runtime.image_io import png_writer

GENERATOR = Generator(os.environ["BUNDLE"], SessionOptions(return_memory=True))


def application(environ, start_response):
    label, query = environ["PATH_INFO"].strip("/"), parse_qs(environ.get("QUERY_STRING", ""))
    try:
        [image] = GENERATOR.generate([label], seed=int(query.get("seed", ["0"])[0])).images
    except (ValueError, NextscaleError) as error:
        start_response("400 Bad Request", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{error}\n".encode()]
    png = io.BytesIO()
    png_writer(image, {})(png)
    start_response("200 OK", [("Content-Type", "image/png")])
    return [png.getvalue()]
