"""Quotas are found in trees of files like the kernel's."""

import pytest

from adaptive.quota import Quota, find, read

V2 = "30 23 0:27 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:15 - cgroup cgroup "
    "rw,cpu,cpuacct\n"
)


@pytest.fixture
def tree(tmp_path):
    """Makes files below a root, which it returns."""

    def make(**files):
        for name, content in files.items():
            path = tmp_path / NAMES.get(name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


NAMES = {"cgroup": "proc/self/cgroup", "mounts": "proc/self/mountinfo"}


def two(path, content):
    return {f"sys/fs/cgroup/{path}/cpu.max": content}


def one(path, quota, period="100000"):
    folder = f"sys/fs/cgroup/cpu,cpuacct/{path}"
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": period}


def test_the_own_group_has_a_quota(tree):
    given = tree(cgroup="0::/a/b\n", mounts=V2.format(root="/"), **two("a/b", "50000 100000\n"))
    assert find(given) == Quota(0.05, 0.1)


def test_the_tightest_of_all_above_counts(tree):
    files = two("a/b", "90000 100000") | two("a", "10000 50000") | two("", "max 100000")
    given = tree(cgroup="0::/a/b\n", mounts=V2.format(root="/"), **files)
    assert find(given) == Quota(0.01, 0.05)
    assert find(given).share == pytest.approx(0.2)


def test_a_group_beside_the_own_one_does_not_count(tree):
    files = two("a/b", "90000 100000") | two("a/c", "1000 100000")
    given = tree(cgroup="0::/a/b\n", mounts=V2.format(root="/"), **files)
    assert find(given) == Quota(0.09, 0.1)


def test_the_older_version_has_two_files_and_a_mount_for_each_controller(tree):
    cgroup = "9:memory:/m\n4:cpu,cpuacct:/a/b\n0::/elsewhere\n"
    files = one("a/b", 200000) | one("a", 30000) | one("", -1)
    given = tree(cgroup=cgroup, mounts=V1.format(root="/"), **files)
    assert find(given) == Quota(0.03, 0.1)


def test_in_a_container_the_mount_begins_at_its_own_group(tree):
    cgroup = "4:cpu,cpuacct:/docker/f00\n"
    given = tree(cgroup=cgroup, mounts=V1.format(root="/docker/f00"), **one("", 150000))
    assert find(given) == Quota(0.15, 0.1)
    given = tree(cgroup="0::/../other\n", mounts=V2.format(root="/"), **two("", "20000 100000"))
    assert find(given) == Quota(0.02, 0.1)


def test_odd_characters_in_a_mount_are_read(tree):
    mounts = r"30 23 0:27 / /odd\040place rw - cgroup2 cgroup2 rw" + "\n"
    given = tree(cgroup="0::/\n", mounts=mounts, **{"odd place/cpu.max": "1000 2000"})
    assert find(given) == Quota(0.001, 0.002)


@pytest.mark.parametrize(
    "content",
    ["max 100000", "", "50000", "a b", "-5 100000", "0 100000", "50000 0", "1 2 3", "\0\n"],
)
def test_what_is_no_quota_limits_nothing(tree, content):
    given = tree(cgroup="0::/a\n", mounts=V2.format(root="/"), **two("a", content))
    assert find(given) is None


@pytest.mark.parametrize("cgroup", ["", "garbage", "0:", "::::", "0::/a\n"])
@pytest.mark.parametrize("mounts", ["", "garbage - \n", "1 2 3 - cgroup2 x rw\n"])
def test_files_that_make_no_sense_limit_nothing(tree, cgroup, mounts):
    assert find(tree(cgroup=cgroup, mounts=mounts)) is None


def test_without_the_files_there_is_no_quota(tmp_path):
    assert find(tmp_path) is None
    assert read(tmp_path / "nowhere") is None
