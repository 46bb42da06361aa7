import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from lpt_jax import config
from lpt_jax.data import carriers, reviews
from lpt_jax.errors import InputError

REVIEWS_2014 = [
    {
        "reviewerID": "A1",
        "asin": "B1",
        "overall": 5.0,
        "unixReviewTime": 1300000000,
        "reviewText": "Good &amp; <br />soft.",
    },
    {"reviewerID": "A2", "asin": "B2", "overall": 3.0, "unixReviewTime": 1300086400, "reviewText": ""},
    {"reviewerID": "A1", "asin": "B2", "overall": 1.0, "unixReviewTime": 1300172800},
]
META_2014 = [
    {"asin": "B1", "title": "Soap &amp; Co,\n 3  bars", "price": 3.1, "categories": [["Beauty", "Bath"], ["Beauty", "Kids"]],
     "related": {"also_bought": ["B2"]}, "brand": "Unknown", "description": "It's<br>soap."},
    {"asin": "B2", "title": "Comb"},
    {"asin": "B9", "title": "Nobody took it"},
]  # fmt: skip


def texts(raw):
    return raw.interactions.review(np.arange(len(raw.interactions.user))).tolist()


def read(**settings):
    data = config.default().data
    columns = settings.pop("columns", None)
    data.update(settings)
    if columns is not None:
        data.columns.update({name: "" for name in data.columns} | columns)
    return reviews.read(data)


def rows(raw):
    """(user, item, order, rating) of each interaction."""
    r = raw.interactions
    rating = r.rating if r.rating is not None else [None] * len(r.user)
    return [
        (r.user_ids[u], r.item_ids[i], o, s)
        for u, i, o, s in zip(r.user.tolist(), r.item.tolist(), r.order.tolist(), rating)
    ]


def put(path, records, literal=False):
    text = "".join((repr(r) if literal else json.dumps(r)) + "\n" for r in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# Amazon


def amazon_2014(folder, suffix=".gz"):
    put(folder / f"reviews_Beauty_5.json{suffix}", REVIEWS_2014)
    put(folder / f"meta_Beauty.json{suffix}", META_2014, literal=True)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_amazon_2014(tmp_path, suffix):
    amazon_2014(tmp_path, suffix)
    raw = read(source="amazon", path=str(tmp_path), name="Beauty")
    assert rows(raw) == [("A1", "B1", 1.3e9, 5), ("A2", "B2", 1300086400, 3), ("A1", "B2", 1300172800, 1)]
    assert texts(raw) == ["Good & soft.", None, None]
    assert raw.interactions.has_time and raw.interactions.user.dtype == np.int32
    assert raw.items == {
        "B1": {
            "title": "Soap & Co, 3 bars",
            "price": "3.10",
            "categories": ["Beauty", "Bath"],
            "description": "It's soap.",
        },
        "B2": {"title": "Comb"},
    }


def test_amazon_2018(tmp_path):
    junk = ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{}"
    put(tmp_path / "Gift_Cards_5.json.gz", REVIEWS_2014)
    put(
        tmp_path / "meta_Gift_Cards.json.gz",
        [
            {"asin": "B1", "title": "Card", "price": junk, "category": ["Gifts", "Gifts", "</span></span>"],
             "description": ["One.", "Two."], "brand": "Acme"},
            {"asin": "B2", "title": "var x = a.getTime()", "price": "$1,250.00"},
        ],
    )  # fmt: skip
    raw = read(source="amazon", path=str(tmp_path), year=2018)  # one category: no name needed
    assert raw.items == {
        "B1": {"title": "Card", "categories": ["Gifts"], "description": "One. Two.", "brand": "Acme"},
        "B2": {"price": "$1,250.00"},
    }


def test_amazon_2023(tmp_path):
    put(
        tmp_path / "All_Beauty.jsonl",
        [
            {"user_id": "U1", "asin": "C1", "parent_asin": "P1", "rating": 4.0, "timestamp": 1588687728923, "text": "Nice \ud83d"},
            {"user_id": "U1", "asin": "C2", "parent_asin": "P2", "rating": 2.0, "timestamp": 1588687728924, "text": "No"},
        ],
    )  # fmt: skip
    put(
        tmp_path / "meta_All_Beauty.jsonl",
        [
            {"parent_asin": "P1", "title": "Mask", "features": ["Soft"], "description": [], "price": None,
             "average_rating": 4.5, "categories": ["Beauty", "Skin"], "store": "Shop"},
            {"parent_asin": "P2", "title": "Oil", "features": ["x"], "description": ["Pure", "oil"], "price": 9.5,
             "average_rating": 4.0, "categories": [], "store": None},
        ],
    )  # fmt: skip
    raw = read(source="amazon", path=str(tmp_path), name="All_Beauty", year=2023)
    assert rows(raw) == [("U1", "P1", 1588687728.923, 4), ("U1", "P2", 1588687728.924, 2)]
    assert texts(raw) == ["Nice ?", "No"]  # a lone surrogate can't be encoded
    assert raw.items == {
        "P1": {
            "title": "Mask",
            "description": "Soft",
            "categories": ["Beauty", "Skin"],
            "brand": "Shop",
            "average_rating": 4.5,
        },
        "P2": {"title": "Oil", "description": "Pure oil", "price": "9.50", "average_rating": 4.0},
    }


def test_amazon_files_by_name(tmp_path):
    reviews_path = put(tmp_path / "mine.jsonl", REVIEWS_2014)
    with pytest.raises(InputError, match=r"The metadata of .*mine\.jsonl.* is missing"):
        read(source="amazon", path=str(reviews_path))
    meta_path = put(tmp_path / "items.json", META_2014)
    assert read(source="amazon", path=str(reviews_path), items_path=str(meta_path)).items["B2"] == {"title": "Comb"}


def test_amazon_asks_for_the_category(tmp_path):
    amazon_2014(tmp_path)
    put(tmp_path / "reviews_Baby_5.json", REVIEWS_2014)
    with pytest.raises(InputError, match="has 2 review files for --config.data.name=''.*reviews_Baby_5.json"):
        read(source="amazon", path=str(tmp_path))
    with pytest.raises(InputError, match="has 0 review files for --config.data.name='Books'"):
        read(source="amazon", path=str(tmp_path), name="Books")
    assert len(rows(read(source="amazon", path=str(tmp_path), name="Beauty"))) == 3


def test_broken_lines_are_named(tmp_path):
    amazon_2014(tmp_path, "")
    with open(tmp_path / "reviews_Beauty_5.json", "a") as file:
        file.write('\n{"reviewerID": "A1", "asin"\n')
    with pytest.raises(InputError, match=r"reviews_Beauty_5\.json:5 is not a JSON object: mend"):
        read(source="amazon", path=str(tmp_path), name="Beauty")
    put(tmp_path / "reviews_Beauty_5.json", REVIEWS_2014)
    with open(tmp_path / "meta_Beauty.json", "a") as file:
        file.write("__import__('os').getcwd()\n")  # never evaluated
    with pytest.raises(InputError, match=r"meta_Beauty\.json:4 is not a JSON object"):
        read(source="amazon", path=str(tmp_path), name="Beauty")


def test_broken_values_are_named(tmp_path):
    put(tmp_path / "reviews_X_5.json", [*REVIEWS_2014, REVIEWS_2014[0] | {"overall": "five"}])
    put(tmp_path / "meta_X.json", META_2014)
    with pytest.raises(InputError, match=r"reviews_X_5\.json:4 has the rating 'five'"):
        read(source="amazon", path=str(tmp_path))


def test_broken_gzip_is_named(tmp_path):
    amazon_2014(tmp_path)
    path = tmp_path / "reviews_Beauty_5.json.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"reviews_Beauty_5\.json\.gz can't be read to its end"):
        read(source="amazon", path=str(tmp_path), name="Beauty")


def test_wrong_keys_are_named(tmp_path):
    put(tmp_path / "X.jsonl", [{"who": "a", "what": "b"}])
    put(tmp_path / "meta_X.jsonl", META_2014)
    with pytest.raises(InputError, match=r"X\.jsonl has no column user or .*\(it has (who, what|what, who)\)"):
        read(source="amazon", path=str(tmp_path))


def test_unusable_rows_are_counted(tmp_path):
    lacking = [
        {"asin": "B1", "unixReviewTime": 1},
        {"reviewerID": " ", "asin": "B1"},
        {"reviewerID": "A3", "asin": "B1"},
    ]
    put(tmp_path / "reviews_X_5.json", [*REVIEWS_2014, *lacking, REVIEWS_2014[0]])
    put(tmp_path / "meta_X.json", META_2014)
    raw = read(source="amazon", path=str(tmp_path))
    assert raw.counts == {"rows read": 7, "dropped: no user or no item": 2, "dropped: no time": 1}
    assert len(rows(raw)) == 4  # the repeat stays
    put(tmp_path / "reviews_X_5.json", lacking[:2])
    with pytest.raises(InputError, match="has no row with a user and an item"):
        read(source="amazon", path=str(tmp_path))


# MovieLens


def test_movielens_100k(tmp_path):
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t4\t891717742\n")
    flags = ["0"] * 19
    flags[5] = flags[8] = "1"
    film = "|".join(["242", "Les Misérables (1995)", "01-Jan-1995", "", "http://x", *flags])
    unknown = "|".join(["302", "unknown", "", "", "", "1", *["0"] * 18])
    (tmp_path / "u.item").write_bytes(f"{film}\n{unknown}\n".encode("latin-1"))
    assert read(source="movielens", path=str(tmp_path)).people == {}  # without the file of users
    (tmp_path / "u.user").write_text("196|49|M|writer|55105\n186|17|F|student|x\n")
    raw = read(source="movielens", path=str(tmp_path))
    assert raw.people["196"] == {"sex": "M", "age group": "45", "occupation": "writer"}
    assert raw.people["186"] == {"sex": "F", "age group": "0", "occupation": "student"}
    assert rows(raw) == [("196", "242", 881250949, 3), ("186", "302", 891717742, 4)]
    film = {"title": "Les Misérables (1995)", "year": "1995", "genres": ["Comedy", "Drama"]}
    assert raw.items == {"242": film, "302": {}}


def test_movielens_1m(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::661::3::978302109\n")
    (tmp_path / "movies.dat").write_bytes(
        '1193::Amélie: "One" (2001)::Drama|Sci-Fi\n661::Up (1996)::\n'.encode("latin-1")
    )
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    raw = read(source="movielens", path=str(tmp_path))
    assert rows(raw) == [("1", "1193", 978300760, 5), ("2", "661", 978302109, 3)]
    assert raw.items["1193"] == {"title": 'Amélie: "One" (2001)', "year": "2001", "genres": ["Drama", "Sci-Fi"]}
    assert raw.items["661"] == {"title": "Up (1996)", "year": "1996"}
    assert [raw.people[user]["age group"] for user in "12"] == ["0", "55"] and raw.people["1"]["sex"] == "F"


def test_movielens_latest(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n1,7,3.0,1260759179\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n31,"Lion King, The (1994)",Animation|Drama\n7,Mystery,(no genres listed)\n8,Unseen (1990),Drama\n'
    )
    raw = read(source="movielens", path=str(tmp_path))
    assert rows(raw) == [("1", "31", 1260759144, 2.5), ("1", "7", 1260759179, 3)]
    film = {"title": "The Lion King (1994)", "year": "1994", "genres": ["Animation", "Drama"]}
    assert raw.items == {"31": film, "7": {"title": "Mystery"}}


def test_recbole(tmp_path):
    (tmp_path / "ml.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"
    )
    (tmp_path / "ml.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n242\t\"Kolya\tx\" y\t1996\tComedy Children's\n"
        .replace("\tx\" y", '" x')
    )  # fmt: skip
    (tmp_path / "ml.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n196\t24\tM\tartist\t1\n"
    )
    raw = read(source="movielens", path=str(tmp_path))
    assert rows(raw) == [("196", "242", 881250949, 3)]
    assert raw.people == {"196": {"sex": "M", "age group": "18", "occupation": "artist"}}
    assert raw.items == {"242": {"title": '"Kolya" x (1996)', "year": "1996", "genres": ["Comedy", "Children's"]}}


def test_movielens_errors(tmp_path):
    with pytest.raises(InputError, match="has no MovieLens files"):
        read(source="movielens", path=str(tmp_path))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n1,31\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n31,A,B\n")
    with pytest.raises(InputError, match=r"ratings\.csv:3 has 2 columns, not 4"):
        read(source="movielens", path=str(tmp_path))
    (tmp_path / "ratings.csv").write_text("userId,film,rating\n1,31,2.5\n")
    with pytest.raises(InputError, match=r"ratings\.csv has no column item .*\(it has userId, film, rating\)"):
        read(source="movielens", path=str(tmp_path))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,31,2.5\n")
    (tmp_path / "movies.csv").unlink()
    with pytest.raises(InputError, match=r"The film table is not there: .*movies\.csv"):
        read(source="movielens", path=str(tmp_path))
    with pytest.raises(InputError, match="path, the file or folder to read, is not there: /nowhere"):
        read(source="movielens", path="/nowhere")


# Sequences


def test_sequences(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "README.txt").write_text("not a sequence\n")
    (tmp_path / "raw" / "sequential.txt").write_text("1 10 20 10\n\n2 20 30\n")
    (tmp_path / "derived_items.tsv").write_text(
        'item_id\tasin\ttitle\tcategories\tbrand\tprice\n10\tB1\t"A 2"" iron"\tBeauty|Hair\tUnknown\t12.0\n20\tB2\t\t\t\t\n'
    )
    raw = read(source="sequences", path=str(tmp_path))
    assert rows(raw) == [("1", "10", 0, None), ("1", "20", 1, None), ("1", "10", 2, None), ("2", "20", 0, None), ("2", "30", 1, None)]  # fmt: skip
    assert not raw.interactions.has_time and raw.interactions.review is None
    assert raw.items == {"10": {"title": 'A 2" iron', "categories": ["Beauty", "Hair"], "price": "12.00"}, "20": {}}
    (tmp_path / "raw" / "sequential.txt").write_text("1 10\n2\n")
    with pytest.raises(InputError, match=r"sequential\.txt:2 has no item after the user '2'"):
        read(source="sequences", path=str(tmp_path))
    (tmp_path / "derived_items.tsv").unlink()
    with pytest.raises(InputError, match="The item table of .* is missing"):
        read(source="sequences", path=str(tmp_path))


# Named columns, whatever the file


COLUMNS = dict(user="who", item="what", time="when", rating="stars", review="said", title="name", categories="tags")
RECORDS = [
    {"who": "ann", "what": "007", "when": "2020-01-02", "stars": 4, "said": "fine", "name": "Soap", "tags": ["a", "b"]},
    {"who": "bob", "what": "8", "when": "2020-01-01T00:00:01Z", "stars": None, "said": None, "name": "Comb", "tags": []},
    {"who": "ann", "what": "8", "when": "2020-01-03 12:00:00+02:00", "stars": 5, "said": "ok", "name": "Comb 2", "tags": []},
]  # fmt: skip
SEEN = [("ann", "007", 1577923200, 4), ("bob", "8", 1577836801, None), ("ann", "8", 1578045600, 5)]


def write_table(path, records):
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(records), path)
        return path
    if ".jsonl" in path.name:
        return put(path, records)
    delimiter = "\t" if ".tsv" in path.name else ","
    lines = [delimiter.join(records[0])]
    for record in records:
        cells = ["|".join(v) if isinstance(v, list) else "" if v is None else str(v) for v in record.values()]
        lines.append(delimiter.join(cells))
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"])
def test_table(tmp_path, suffix):
    path = write_table(tmp_path / f"log{suffix}", RECORDS)
    raw = read(source="table", path=str(path), columns=COLUMNS)
    got = [(u, i, o, None if np.isnan(s) else s) for u, i, o, s in rows(raw)]
    assert got == SEEN
    assert texts(raw) == ["fine", None, "ok"]
    assert raw.items == {"007": {"title": "Soap", "categories": ["a", "b"]}, "8": {"title": "Comb"}}


def test_table_with_items_beside(tmp_path):
    log = write_table(tmp_path / "log.csv", [{"user": 1, "item": 2}, {"user": 1, "item": 1}])
    items = write_table(tmp_path / "items.jsonl", [{"item": 2, "title": "Two"}, {"item": 3, "title": "Three"}])
    raw = read(source="table", path=str(log), items_path=str(items))
    assert rows(raw) == [("1", "2", 0, None), ("1", "1", 1, None)]
    assert raw.items == {"2": {"title": "Two"}}


def test_table_of_dates(tmp_path):
    import datetime

    day = datetime.datetime(2020, 1, 2)
    for number, when in enumerate((day, day.date(), 1577923200, 1577923200000, 1577923200e6)):
        path = write_table(tmp_path / f"{number}.parquet", [{"user": 1, "item": 2, "when": when}])
        raw = read(source="table", path=str(path), columns=dict(user="user", item="item", time="when"))
        assert rows(raw)[0][2] == 1577923200, when


def test_table_errors(tmp_path):
    path = write_table(tmp_path / "log.csv", RECORDS)
    with pytest.raises(
        InputError,
        match=r"log\.csv has no column film \(it has who, what, .*name the right one with --config.data.columns.item",
    ):
        read(source="table", path=str(path), columns=COLUMNS | {"item": "film"})
    with pytest.raises(
        InputError, match=r"log\.csv has no column price .*--config.data.columns.price, or none with ''"
    ):
        read(source="table", path=str(path), columns=COLUMNS | {"price": "price"})
    path = write_table(tmp_path / "log.csv", [*RECORDS, RECORDS[0] | {"when": "yesterday"}])
    with pytest.raises(InputError, match=r"log\.csv:5 has the time 'yesterday'"):
        read(source="table", path=str(path), columns=COLUMNS)
    for name, content, what in (
        ("log.xlsx", b"x", "is no .csv"),
        ("log.parquet", b"x", "is no whole Parquet file"),
        ("bad.csv", "user,item\né,1\n".encode("latin-1"), "is no UTF-8 text"),
        ("empty.csv", b"", "is no UTF-8 text with columns"),
        ("empty.jsonl", b"", "has no column item .it has nothing."),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=what):
            read(source="table", path=str(tmp_path / name), columns=dict(user="user", item="item"))
    with pytest.raises(InputError, match="--config.data.path, the file or folder to read, is missing"):
        read(source="table")


# Libraries


def test_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(RECORDS)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole.select([2, 0]), test=whole).save_to_disk(tmp_path / "split")
    write_table(tmp_path / "log.parquet", RECORDS)  # a plain folder of files is loaded as datasets does it
    assert [r[:3] for r in rows(read(source="datasets", path=str(tmp_path / "one"), columns=COLUMNS))] == [
        r[:3] for r in SEEN
    ]
    split = read(source="datasets", path=str(tmp_path / "split"), columns=COLUMNS, name="Beauty")
    assert split.name == "split"
    assert [r[:3] for r in rows(split)] == [SEEN[2][:3], SEEN[0][:3]]
    assert split.items["007"] == {"title": "Soap", "categories": ["a", "b"]}
    with pytest.raises(InputError, match="has no column nobody"):
        read(source="datasets", path=str(tmp_path / "one"), columns=COLUMNS | {"user": "nobody"})
    with pytest.raises(InputError, match="datasets can't load"):
        read(source="datasets", path=str(tmp_path / "none"), columns=COLUMNS)


def test_tfds(tmp_path):
    pytest.importorskip("array_record")
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = dict(
                who=text,
                what=text,
                when=np.int64,
                stars=np.float32,
                said=text,
                name=text,
                tags=tfds.features.Sequence(text),
            )
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for key, record in enumerate(RECORDS):
                yield (
                    key,
                    record | {"when": 1577923200 + key, "said": record["said"] or "", "stars": record["stars"] or 1},
                )

    Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    raw = read(source="tfds", path=str(tmp_path / "tiny" / "1.0.0"), columns=COLUMNS)
    assert raw.name == "tiny/1.0.0"
    assert sorted(rows(raw)) == [
        ("ann", "007", 1577923200, 4),
        ("ann", "8", 1577923202, 5),
        ("bob", "8", 1577923201, 1),
    ]
    assert raw.items["007"] == {"title": "Soap", "categories": ["a", "b"]}
    with pytest.raises(InputError, match="tfds can't load"):
        read(source="tfds", path=str(tmp_path), columns=COLUMNS)


# Names


def test_a_source_is_named_by_what_was_read(tmp_path, monkeypatch):
    (tmp_path / "my films").mkdir()
    (tmp_path / "my films/ratings.csv").write_text("userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n")
    (tmp_path / "my films/movies.csv").write_text("movieId,title,genres\n31,Heat (1995),Crime\n")
    wrong = dict(name="Beauty", year=2018)  # as in a config that was written for other data
    assert read(source="movielens", path=f"{tmp_path}/my films/", **wrong).name == "my films"
    monkeypatch.chdir(tmp_path / "my films")
    assert read(source="movielens", path=".", **wrong).name == "my films"
    (tmp_path / "sequential.txt").write_text("1 31\n")
    (tmp_path / "items.csv").write_text("item,title\n31,Heat\n")
    assert (
        read(source="sequences", path="../sequential.txt", items_path="../items.csv", **wrong).name == "sequential.txt"
    )
    assert read(source="sequences", path="..", **wrong).name == tmp_path.name
    (tmp_path / "log.csv").write_text("user,item,title\n1,31,Heat\n")
    assert read(source="table", path="../log.csv", **wrong).name == "log.csv"
    assert read(source="table", path="../log.csv", items_path="../items.csv", **wrong).name == "log.csv"


@pytest.mark.parametrize(
    "file, name",
    [
        ("reviews_Home_5.json.gz", "Home 2014"),
        ("reviews_Home.json.gz", "Home 2014"),
        ("Home_5.json", "Home 2018"),
        ("Home.jsonl.gz", "Home 2023"),
        ("mine.txt", "mine.txt"),
    ],
)
def test_amazons_files_say_their_category_and_year(tmp_path, file, name):
    path, meta = put(tmp_path / file, REVIEWS_2014), put(tmp_path / "meta_Home.json.gz", META_2014)
    assert read(source="amazon", path=str(path), items_path=str(meta), name="Beauty", year=2014).name == name
    if file != "mine.txt":
        assert read(source="amazon", path=str(tmp_path), name="Home", year=2018).name == name


# Real files


def test_gift_cards(shared_data):
    raw = read(source="amazon", path=str(shared_data / "amazon2018_gift_cards_5core"), year=2018)
    r = raw.interactions
    assert (len(r.user_ids), len(r.item_ids), len(r.user)) == (458, 148, 2972)
    assert sum(text is not None for text in r.review(np.arange(len(r.user)))) == 2966 and set(r.rating) == {
        1,
        2,
        3,
        4,
        5,
    }
    assert sum("title" in i for i in raw.items.values()) == 148
    assert sum("description" in i for i in raw.items.values()) == 145
    assert all(len(i.get("price", "")) <= 9 for i in raw.items.values())


def test_movielens_latest_small(shared_data):
    raw = read(source="movielens", path=str(shared_data / "movielens_latest_small_2016"))
    r = raw.interactions
    assert (len(r.user_ids), len(r.item_ids), len(r.user), len(raw.items)) == (671, 9066, 100004, 9066)
    assert raw.items["1"]["title"] == "Toy Story (1995)" and rows(raw)[0] == ("1", "31", 1260759144, 2.5)


def test_beauty(shared_data):
    raw = read(source="sequences", path=str(shared_data / "amazon_beauty_2014_5core"))
    r = raw.interactions
    assert (len(r.user_ids), len(r.item_ids), len(r.user)) == (22363, 12101, 198502)
    assert sum("title" in i for i in raw.items.values()) == 12094
    assert r.order.max() == 203 and np.bincount(r.user).min() == 5


def test_recbole_carrier():
    try:
        carriers.carrier("recbole")
    except InputError as error:
        pytest.skip(str(error))
    raw = read(source="movielens", path="carrier:recbole")
    r = raw.interactions
    assert (len(r.user_ids), len(r.item_ids), len(r.user)) == (943, 1682, 100000)
    assert raw.items["1"] == {
        "title": "Toy Story (1995)",
        "year": "1995",
        "genres": ["Animation", "Children's", "Comedy"],
    }
    assert raw.items["267"] == {}  # MovieLens' own "unknown"
    assert raw.name == "ml-100k"
    with pytest.raises(InputError, match="carrier:x has no data"):
        read(source="movielens", path="carrier:x")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_amazon_is_streamed(tmp_path, suffix, monkeypatch):
    amazon_2014(tmp_path, suffix)
    slow = read(source="amazon", path=str(tmp_path), name="Beauty")
    monkeypatch.setattr(reviews, "_json", None)  # the way for odd lines is not taken
    raw = read(source="amazon", path=str(tmp_path), name="Beauty")
    assert rows(raw) == rows(slow) and texts(raw) == texts(slow) == ["Good & soft.", None, None]


def test_a_review_text_that_is_no_string_is_read_as_one(tmp_path):
    put(tmp_path / "mine.jsonl", [REVIEWS_2014[0] | {"reviewText": 7}, REVIEWS_2014[1], REVIEWS_2014[2]])
    meta = put(tmp_path / "meta.json", META_2014)
    raw = read(source="amazon", path=str(tmp_path / "mine.jsonl"), items_path=str(meta))
    assert texts(raw) == ["7", None, None]


def test_a_review_column_of_another_type(tmp_path):
    for name, column in (("null", pa.nulls(2)), ("number", pa.array([1.5, None]))):
        table = pa.table({"user": ["a", "b"], "item": ["x", "y"], "title": ["X", "Y"], "review": column})
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet")
        raw = read(
            source="table", path=str(tmp_path / f"{name}.parquet"),
            columns={"user": "user", "item": "item", "title": "title", "review": "review"},
        )  # fmt: skip
        assert raw.interactions.review is None if name == "null" else texts(raw) == ["1.5", None]
