import gzip
import hashlib
import http.server
import io
import json
import socket
import threading
import zipfile

import pytest

from lpt_jax import config
from lpt_jax.data import downloads, reviews
from lpt_jax.errors import InputError

URL = "https://example.org/data/big.json.gz"
WHOLE = gzip.compress(b'{"a": 1}\n' + bytes(range(256)) * 800, mtime=0)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A mirror on loopback: .files by path, .ranges asked for, .cut = bytes after which it breaks off."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body, asked = web.files.get(self.path), self.headers.get("Range")
            web.ranges.append(asked)
            if body is None:
                return self.send_error(404)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and web.resumes else 0
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206 if asked and web.resumes else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : start + web.cut if web.cut else None])

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.files, web.ranges, web.cut, web.resumes = {"/data/big.json.gz": WHOLE}, [], 0, True
    threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("LPT_JAX_MIRROR", f"http://127.0.0.1:{web.server_port}")
    monkeypatch.setenv("LPT_JAX_CACHE", str(tmp_path / "cache"))
    yield web
    web.shutdown()
    web.server_close()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    with socket.socket() as taken:  # bound, never listened on: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("LPT_JAX_MIRROR", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("LPT_JAX_CACHE", str(tmp_path / "cache"))
        yield


def names(folder):
    return sorted(f.name for f in folder.iterdir() if f.name != ".lock")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_fetch(server, tmp_path):
    path = tmp_path / "new" / "big.json.gz"
    assert downloads.fetch(URL, path, sha256(WHOLE)) == path
    assert path.read_bytes() == WHOLE
    assert names(path.parent) == ["big.json.gz", "big.json.gz.sha256"]
    server.files.clear()
    downloads.fetch(URL, path)  # it is there: nothing is asked for
    assert server.ranges == [None]


def test_goes_on_from_what_arrived(server, tmp_path):
    path = tmp_path / "big.json.gz"
    server.cut = 500
    with pytest.raises(InputError, match=f"broke after 500 of {len(WHOLE)} bytes.*the same command goes on"):
        downloads.fetch(URL, path)
    assert names(tmp_path) == ["big.json.gz.part"]
    server.cut = 0
    downloads.fetch(URL, path)
    assert path.read_bytes() == WHOLE and server.ranges == [None, "bytes=500-"]
    assert names(tmp_path) == ["big.json.gz", "big.json.gz.sha256"]


def test_begins_anew_without_ranges(server, tmp_path):
    (tmp_path / "big.json.gz.part").write_bytes(b"anything")
    server.resumes = False
    assert downloads.fetch(URL, tmp_path / "big.json.gz", sha256(WHOLE)).read_bytes() == WHOLE


def test_killed_between_the_last_byte_and_the_rename(server, tmp_path):
    (tmp_path / "big.json.gz.part").write_bytes(WHOLE)
    assert downloads.fetch(URL, tmp_path / "big.json.gz").read_bytes() == WHOLE  # the server says 416


def test_damage_is_found(server, tmp_path):
    with pytest.raises(InputError, match=f"arrived damaged .its sha256 is {sha256(WHOLE)}, not {'0' * 64}"):
        downloads.fetch(URL, tmp_path / "big.json.gz", "0" * 64)
    server.files["/data/big.json.gz"] = WHOLE[:-9] + b"\0" + WHOLE[-8:]
    with pytest.raises(InputError, match="arrived damaged"):
        downloads.fetch(URL, tmp_path / "big.json.gz")
    server.files["/data/x.zip"] = b"PK no zip"
    with pytest.raises(InputError, match="arrived damaged .File is not a zip file"):
        downloads.fetch("https://example.org/data/x.zip", tmp_path / "x.zip")
    assert names(tmp_path) == []


def test_a_file_changed_later_is_found(server, tmp_path):
    path = downloads.fetch(URL, tmp_path / "big.json.gz")
    path.write_bytes(WHOLE[:-1])
    with pytest.raises(InputError, match=r"big\.json\.gz is damaged .*remove it"):
        downloads.fetch(URL, path)


def test_not_found(server, tmp_path):
    with pytest.raises(InputError, match=r"nope\.gz could not be downloaded .HTTP Error 404: Not Found.\.$"):
        downloads.fetch("https://example.org/nope.gz", tmp_path / "nope.gz")
    assert names(tmp_path) == []


def settings(**changed):
    data = config.default().data
    data.update(changed)
    return data


def test_amazon_from_the_mirror(server, tmp_path):
    review = {"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1300000000}
    folder = "/data/amazon/productGraph/categoryFiles/"
    server.files[folder + "reviews_Beauty_5.json.gz"] = gzip.compress(json.dumps(review).encode())
    server.files[folder + "meta_Beauty.json.gz"] = gzip.compress(repr({"asin": "B1", "title": "Soap"}).encode())
    data = settings(source="amazon", name="Beauty", year=2014)
    assert reviews.read(data).items == {"B1": {"title": "Soap"}}
    server.files.clear()
    assert reviews.read(data).items == {"B1": {"title": "Soap"}}  # from the cache
    assert len(server.ranges) == 2
    meta = tmp_path / "cache/data/amazon-2014-Beauty/meta_Beauty.json.gz"
    meta.write_bytes(meta.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        reviews.read(data)


def test_movielens_from_the_mirror(server, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ml-latest/ratings.csv", "userId,movieId,rating,timestamp\n1,2,3.5,1260759144\n")
        archive.writestr("ml-latest/movies.csv", "movieId,title,genres\n2,Heat (1995),Crime\n")
        archive.writestr("../../../evil/README", "lands under its base name")
        archive.writestr("../outside.txt", "nowhere")
    server.files["/datasets/movielens/ml-latest.zip"] = buffer.getvalue()
    raw = reviews.read(settings(source="movielens", name="ml-latest"))
    assert raw.items == {"2": {"title": "Heat (1995)", "year": "1995", "genres": ["Crime"]}}
    folder = tmp_path / "cache/data/ml-latest"
    assert names(folder) == ["README", "ml-latest.zip", "ml-latest.zip.sha256", "movies.csv", "ratings.csv"]
    assert names(tmp_path) == ["cache"]
    (folder / "ratings.csv").unlink()  # as if killed while unpacking
    assert len(reviews.read(settings(source="movielens", name="ml-latest")).items) == 1
    (folder / "ml-latest.zip").unlink()
    server.files.clear()
    assert len(reviews.read(settings(source="movielens", name="ml-latest")).items) == 1  # the files do
    monkeypatch.setitem(downloads.MOVIELENS, "ml-1m", "0" * 64)
    server.files["/datasets/movielens/ml-1m.zip"] = buffer.getvalue()
    with pytest.raises(InputError, match=r"ml-1m\.zip arrived damaged .its sha256"):
        reviews.read(settings(source="movielens", name="ml-1m"))


def test_without_a_network_one_message_says_it_all(no_network, tmp_path):
    with pytest.raises(InputError) as error:
        reviews.read(settings(source="amazon", name="Beauty", year=2014))
    for what in (
        "reviews_Beauty_5.json.gz and meta_Beauty.json.gz",
        str(tmp_path / "cache/data/amazon-2014-Beauty"),
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/meta_Beauty.json.gz",
        "--config.data.path",
        "`python -m lpt_jax.main --config=configs/beauty.py:tiny` and `make quickstart`",
    ):
        assert what in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.part"))
    with pytest.raises(InputError, match=r"Put ml-100k\.zip .* into .*ml-100k"):
        reviews.read(settings(source="movielens"))


def test_files_put_into_the_cache_by_hand_do(no_network, tmp_path):
    folder = tmp_path / "cache/data/amazon-2018-X"
    folder.mkdir(parents=True)
    review = {"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1300000000}
    (folder / "X_5.json").write_text(json.dumps(review))  # unpacked
    (folder / "meta_X.json.gz").write_bytes(gzip.compress(b'{"asin": "B1", "title": "Soap"}'))
    assert reviews.read(settings(source="amazon", name="X", year=2018)).items == {"B1": {"title": "Soap"}}


def test_names_that_will_not_do(no_network, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="name='' won't do: give an Amazon category"):
        reviews.read(settings(source="amazon"))
    with pytest.raises(InputError, match="'../x' won't do"):
        reviews.read(settings(source="amazon", name="../x"))
    with pytest.raises(InputError, match="'ml-3m' won't do: give ml-100k, ml-1m, "):
        reviews.read(settings(source="movielens", name="ml-3m"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LPT_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="Not a directory: .*: set LPT_JAX_CACHE"):
        reviews.read(settings(source="movielens"))
