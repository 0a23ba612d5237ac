"""What keeps attacks and faults from doing harm, each with the tests that fail without it.

`tests.undefended` takes them out and sees that they do.
"""

from dataclasses import dataclass

KEEPER = "templates/site/daemon.py"
DAEMON = "tests/deploy/test_daemon.py"
SITE_MASKS = "tests/client/test_masking.py"
SERVER_MASKS = "tests/server/test_masking.py"
KNOWN = "tests/deploy/test_known_errors.py"
ATTACKS = "tests/end_to_end/test_attacks.py"
ADMISSION = "tests/client/test_admission.py"
SITE_CODE = "tests/client/test_site_code.py"
SECRECY = "tests/end_to_end/test_secrecy.py"
LIE = "a_lying_sites_update_is_refused"
OUTSIDE = "a_loader_outside_the_sites_code_is_not_run"
SDK_STRATEGIES = (
    "JSONData",
    "DillDataBase64",
    "AllDataStrategies",
    "PureSourceTextInspect",
    "DillCode",
    "AllCodeStrategies",
)
"""What an endpoint of today lets in unless it is told otherwise."""
STOLEN = "a_stolen_secret_runs_nothing_but_our_task"


@dataclass(frozen=True)
class Change:
    """Text of a file, and what stands in its place once the defence is taken out."""

    file: str
    text: str
    instead: str = ""


@dataclass(frozen=True)
class Defence:
    """What keeps an attack or a fault from doing harm.

    Attributes:
        against: The attack or fault.
        changes: What takes the defence out.
        tests: Tests that must fail then: a file, and the beginning of the name after `test_`.
        session: Those of one name are taken out together; none stands alone.
    """

    against: str
    changes: tuple[Change, ...]
    tests: tuple[tuple[str, str], ...]
    session: str = ""


DEFENCES = [
    Defence(
        "another user's endpoint says that it is ours",
        (
            Change(
                KEEPER,
                "return _listens(pid, address[1]) and _endpoint_uuid",
                "return _endpoint_uuid",
            ),
        ),
        ((DAEMON, "another_users_endpoint_is_not_ours_whatever_it_says"),),
    ),
    Defence(
        "the port is taken by another user's endpoint",
        (Change(KEEPER, "        self._refuse_taken_port()\n"),),
        (
            (DAEMON, "a_port_taken_by_another_endpoint_is_named"),
            (DAEMON, "a_port_taken_by_another_program_is_named"),
        ),
    ),
    Defence(
        "the port is taken, and only the daemon says so",
        (
            Change(
                "playbooks/roles/proxystore/defaults/main.yml",
                "address already in use|Errno 98",
                "!",
            ),
        ),
        ((KNOWN, "a_port_that_is_taken"),),
    ),
    Defence(
        "a stale process id in our record",
        (
            Change(
                KEEPER,
                '_start_time(record["pid"]) == record["start_time"]',
                '_start_time(record["pid"]) is not None',
            ),
        ),
        ((DAEMON, "a_recorded_pid_that_is_somebody_elses_now"),),
    ),
    Defence(
        "a stale process id in ProxyStore's own file",
        (
            Change(
                KEEPER,
                "self.pid_file.unlink(missing_ok=True)\n        self._rotate_logs(None)",
                "pass\n        self._rotate_logs(None)",
            ),
        ),
        ((DAEMON, "a_pid_file_of_somebody_elses_process_is_not_believed"),),
    ),
    Defence(
        "a stale process id in Globus Compute's own file, of another login node",
        (
            Change(
                "playbooks/roles/compute/defaults/main.yml",
                "Another instance of this endpoint is running",
                "!",
            ),
        ),
        ((KNOWN, "an_endpoint_that_runs_on_another_login_node"),),
    ),
    Defence(
        "the alias leads to the other login node: the keeper",
        (Change(KEEPER, 'if record["host"] != socket.gethostname():', "if False:"),),
        (
            (DAEMON, "a_record_of_another_login_node_is_not_believed"),
            (DAEMON, "the_other_login_node_neither_believes_nor_ends_it"),
        ),
    ),
    Defence(
        "the alias leads to the other login node: the plays",
        (Change("playbooks/roles/lock/tasks/login.yml", "lock_elsewhere | length == 0", "true"),),
        (("tests/deploy/test_lock.py", "an_alias_that_leads_to_another_login_node"),),
    ),
    Defence(
        "kill -9 of a daemon: what it leaves behind",
        (
            Change(
                KEEPER,
                "        swept = self._sweep(record)\n        self._clear",
                "        swept = False\n        self._clear",
            ),
            Change(
                KEEPER,
                "self.record_file.unlink(missing_ok=True)\n        self._sweep(record)\n",
                "self.record_file.unlink(missing_ok=True)\n",
            ),
        ),
        (
            (DAEMON, "after_kill_9_it_starts_again_and_sweeps_the_orphan"),
            (DAEMON, "an_orphan_that_wrote_over_its_environment"),
        ),
    ),
    Defence(
        "kill -9 of a user endpoint's interchange",
        (Change(KEEPER, '{"changed": self._end_maimed(), ', '{"changed": False, '),),
        ((DAEMON, "a_process_whose_vital_child_has_died"),),
    ),
    Defence(
        "kill -9 of each daemon: it stays away",
        (
            Change(
                KEEPER,
                "self._kept(record) if record else self._tried()",
                '{"changed": False, "pid": 0}',
            ),
        ),
        ((DAEMON, "what_cron_calls_starts_what_is_dead"),),
    ),
    Defence(
        "a reboot: all processes are gone, and their numbers come again",
        (
            Change(
                KEEPER,
                'return record["boot"] == _boot() and _start_time',
                "return _start_time",
            ),
        ),
        ((DAEMON, "after_a_reboot_no_process_is_taken_for_it"),),
    ),
    Defence(
        "a full disk",
        (
            Change(
                KEEPER,
                '            self._sweep({"pid": process.pid, "boot": _boot()})\n            raise',
                "            raise",
            ),
        ),
        ((DAEMON, "a_full_disk_leaves_no_daemon"),),
    ),
    Defence(
        "the relay is down",
        (
            Change(
                "playbooks/roles/proxystore/defaults/main.yml",
                "Connect(ion)? (call failed|refused)|ConnectionRefusedError|Errno 111",
                "!",
            ),
        ),
        ((KNOWN, "a_relay_that_is_down"),),
    ),
    Defence(
        "the relay was away, and the endpoint is deaf since",
        (Change(KEEPER, ' >= sign["times"]', " >= 99"),),
        ((DAEMON, "an_endpoint_that_has_met_its_relay_twice"),),
    ),
    Defence(
        "expired credentials, of Globus Compute",
        (
            Change(
                "playbooks/roles/compute/defaults/main.yml",
                "invalid_client|invalid_grant|AuthAPIError",
                "!",
            ),
        ),
        ((KNOWN, "an_endpoint_with_a_secret_that_has_expired"),),
    ),
    Defence(
        "expired credentials, of the relay",
        (
            Change(
                "playbooks/roles/proxystore/defaults/main.yml",
                '"invalid_client|AuthAPIError"',
                '"!"',
            ),
        ),
        ((KNOWN, "a_relay_with_a_secret_that_has_expired"),),
    ),
    Defence(
        "a file that changes between its check and its use",
        (Change("fl/client/site_code.py", "seen = _seen.get({})", "seen = {}"),),
        ((ADMISSION, "a_file_that_changes_between_its_check_and_its_use"),),
    ),
    Defence(
        "a rule of a policy whose value is commented out",
        (
            Change(
                "fl/client/policy.py",
                "if value is None and rule in cls.model_fields:",
                "if False:",
            ),
        ),
        ((ADMISSION, "a_rule_whose_value_is_commented_out_does_not_allow_everything"),),
        "a site's owner",
    ),
    Defence(
        "what a loader imports for itself, named as the loader",
        (
            Change(
                "fl/client/site_code.py",
                'return own or name in getattr(module, "__all__", ())',
                "return True",
            ),
        ),
        tuple(
            (SITE_CODE, f"what_a_file_imports_for_itself_is_not_a_servers_to_call[{name}]")
            for name in ("run", "shuffle", "savetxt")
        ),
        "a site's owner",
    ),
    Defence(
        "a file of gigabytes, named as a model's code",
        (Change("fl/client/site_code.py", " or found.st_size > MOST_BYTES"),),
        ((ADMISSION, "a_file_that_is_too_large_for_code_is_not_read"),),
        "a site's owner",
    ),
    Defence(
        "an argument that a server hides in the audit log behind longer ones",
        (
            Change(
                "fl/client/admission.py",
                "... ({len(text)} characters, sha256 {sha256})",
            ),
        ),
        ((ADMISSION, "a_server_hides_no_argument_in_the_log_behind_others"),),
        "a site's owner",
    ),
    Defence(
        "a signature of the hub's in a bug report",
        (Change("templates/site/collect.py", "s|X-Amz-Signature", "none"),),
        (("tests/deploy/test_collect.py", "a_url_of_the_hub_is_packed_without_its_signature"),),
    ),
    Defence(
        "a stolen secret, with another function, a pickle, or source tagged as code",
        (
            Change(
                "templates/compute/config.yaml.j2",
                "allowed_functions:\n  - {{ compute_function_id }}\n",
            ),
            Change(
                "templates/compute/user_config_template.yaml.j2",
                "    - globus_compute_sdk.serialize.JSONData\n",
                "".join(f"    - globus_compute_sdk.serialize.{name}\n" for name in SDK_STRATEGIES),
            ),
        ),
        ((ATTACKS, STOLEN),),
        "site",
    ),
    Defence(
        "a loader outside site_code, by .., by an absolute path, by a link",
        (
            Change("fl/client/site_code.py", "if not file.is_relative_to(folder):", "if False:"),
            Change(
                "fl/client/site_code.py",
                "return file.relative_to(site_code_folder()).as_posix(), ",
                "return str(file), ",
            ),
        ),
        ((ATTACKS, OUTSIDE),),
        "site",
    ),
    Defence(
        "another user on the login node reads our files",
        (
            Change("playbooks/roles/lock/vars/main.yml", "umask 077", "umask 022"),
            Change("playbooks/roles/environment/defaults/main.yml", '  - "{{ fl_site_dir }}"\n'),
        ),
        ((SECRECY, "another_user_of_the_login_node_sees_none_of_our_files"),),
        "site",
    ),
    Defence(
        "the secret in a file too many, and in a worker's environment",
        (
            Change(
                "templates/site/site.env.j2",
                "# Settings of {{ inventory_hostname }}",
                "LEFT={{ fl_client_secret }}\n# Settings of {{ inventory_hostname }}",
            ),
        ),
        ((SECRECY, "the_secret_is_in_nothing_that_a_deployment_and_a_run_leave"),),
        "site",
    ),
    Defence(
        "the secret in what a play prints",
        (
            Change(
                "playbooks/roles/credentials/tasks/main.yml",
                'credentials.env"\n    mode: "0600"\n  no_log: true\n  diff: false\n',
                'credentials.env"\n    mode: "0600"\n',
            ),
        ),
        (
            (
                "tests/deploy/test_deploy.py",
                "check_works_on_a_site_that_is_not_deployed_and_shows_no_secret",
            ),
        ),
        "site",
    ),
    Defence(
        "NaN, infinity",
        (Change("fl/tensors.py", "if not _finite(tensor):", "if False:"),),
        (
            (ATTACKS, f"{LIE}_by_the_servers_own_loop[NaN]"),
            (ATTACKS, f"{LIE}_by_the_servers_own_loop[infinity]"),
        ),
        "server",
    ),
    Defence(
        "a replayed update, and one for a task never sent",
        (Change("fl/server/answers.py", 'if result.get("job") != task.job:', "if False:"),),
        (
            (ATTACKS, f"{LIE}_by_the_servers_own_loop[the answer of the round before]"),
            (ATTACKS, f"{LIE}_by_the_servers_own_loop[the update of a task never sent]"),
        ),
        "server",
    ),
    Defence(
        "other bytes than announced",
        (Change("fl/transport/base.py", "if found != ref.digest:", "if False:"),),
        ((ATTACKS, f"{LIE}_by_the_servers_own_loop[other bytes than announced]"),),
        "server",
    ),
    Defence(
        "2^63 bytes claimed",
        (
            Change(
                "fl/transport/base.py", "if 0 <= size <= LARGEST_BYTES and ", "if 0 <= size and "
            ),
        ),
        ((ATTACKS, f"{LIE}_by_the_servers_own_loop[2^63 bytes claimed]"),),
        "server",
    ),
    Defence(
        "a header of 2^63 bytes",
        (
            Change(
                "fl/tensors.py",
                "if not LENGTH_BYTES < begin <= min(len(data), HEADER_LIMIT):",
                "if False:",
            ),
        ),
        ((ATTACKS, f"{LIE}_by_the_servers_own_loop[a header of 2^63 bytes]"),),
        "server",
    ),
    Defence(
        "a line cut from the audit log",
        (Change("fl/client/audit.py", 'if record["previous"] != previous:', "if False:"),),
        ((ATTACKS, "what_was_tried_stands_in_the_sites_log_and_a_cut_line"),),
        "server",
    ),
    Defence(
        "another shape",
        (
            Change(
                "fl/tensors.py",
                "if other.shape != tensor.shape or other.dtype != tensor.dtype:",
                "if False:",
            ),
        ),
        ((ATTACKS, f"{LIE}_by_the_servers_own_loop[another shape]"),),
        "shape",
    ),
    Defence(
        "a server that tells each site of a secure sum of other survivors",
        (Change("fl/client/masking.py", 'if len(signers) < shares["threshold"]:', "if False:"),),
        (
            (SITE_MASKS, "sites_that_are_told_of_different_survivors_unmask_nothing"),
            (SITE_MASKS, "an_update_is_unmasked_by_what_enough_have_signed"),
        ),
    ),
    Defence(
        "one site of a folder that signs a secure sum for another",
        (
            Change(
                "fl/secure_sum/consistency.py",
                '("survivors", name, told)',
                '("survivors", told)',
            ),
        ),
        ((SITE_MASKS, "a_signature_of_anything_else_does_not_count[name]"),),
    ),
    Defence(
        "shares of a secure sum for a site that was told of another roster",
        (
            Change(
                "fl/client/masking.py",
                "(digest, wanted.client_id, peer)",
                "(wanted.session, wanted.client_id, peer)",
            ),
            Change(
                "fl/client/masking.py",
                'way = (shares["digest"], peer, wanted.client_id)',
                "way = (wanted.session, peer, wanted.client_id)",
            ),
        ),
        ((SITE_MASKS, "shares_open_for_no_peer_that_was_told_of_another_roster"),),
    ),
    Defence(
        "a wrong signature that would cost a secure sum",
        (
            Change(
                "fl/server/masking.py",
                "if not isinstance(given, str) or not is_signed(bundle.identity, given, text):",
                "if not isinstance(given, str):",
            ),
        ),
        ((SERVER_MASKS, "a_signature_that_is_wrong_unmasks_nothing_and_costs_nothing[zeros]"),),
        "server of a secure sum",
    ),
    Defence(
        "a key that every peer of a secure sum would refuse",
        (
            Change("fl/server/masking.py", "if len(keys) < 3 or keys & taken:", "if False:"),
            Change("fl/server/masking.py", 'agreed(PROBE, key, "probe")', "pass"),
        ),
        (
            (SERVER_MASKS, "answers_are_not_believed[equal keys]"),
            (SERVER_MASKS, "answers_are_not_believed[another's key]"),
            (SERVER_MASKS, "answers_are_not_believed[channel of small order]"),
            (SERVER_MASKS, "answers_are_not_believed[pairwise of small order]"),
            (SERVER_MASKS, "answers_are_not_believed[own of small order]"),
        ),
        "server of a secure sum",
    ),
    Defence(
        "shares of a secure sum that nobody can open",
        (Change("fl/server/masking.py", "if not all(_is_sealed(text)", "if not all(True"),),
        (
            (SERVER_MASKS, "answers_are_not_believed[shares of one letter]"),
            (SERVER_MASKS, "answers_are_not_believed[shares in no base64]"),
            (SERVER_MASKS, "answers_are_not_believed[shares that are too long]"),
        ),
        "server of a secure sum",
    ),
    Defence(
        "a site's reference that is not ASCII",
        (
            Change(
                "fl/transport/inline.py",
                "except ValueError as error:  # also of what is not ASCII",
                "except ZeroDivisionError as error:",
            ),
        ),
        (("tests/transport/test_inline.py", "foreign_and_damaged_references_are_refused[ref2]"),),
        "a site's word",
    ),
    Defence(
        "a terabyte that a site claims, at an eviction",
        (Change("fl/transport/proxystore.py", "if time.monotonic() >= until:", "if False:"),),
        (("tests/transport/test_bounds.py", "a_claim_does_not_keep_the_server_at_evicting"),),
        "a site's word",
    ),
    Defence(
        "a hundred thousand metrics of a site",
        (
            Change(
                "fl/server/answers.py",
                "return dict(islice(numbers, MOST_NUMBERS))",
                "return dict(numbers)",
            ),
        ),
        (("tests/server/test_distrust.py", "of_a_sites_metrics_some_are_kept"),),
        "a site's word",
    ),
    Defence(
        "what a site says of its versions",
        (Change("fl/endpoints/globus.py", "def _log_version_mismatch(", "def _nobody_asks("),),
        (("tests/endpoints/test_globus.py", "what_a_site_says_of_itself_ends_nobodys_results"),),
        "a site's word",
    ),
    Defence(
        "an upload that a site makes up for a check",
        (
            Change(
                "fl/check_sites.py",
                'if ref.size != ours.size or ("object" in ref.key and ref.names(ours)):',
                "if False:",
            ),
        ),
        (("tests/test_check.py", "what_a_site_names_as_its_upload_is_not_believed"),),
        "a site's word",
    ),
    Defence(
        "an update that a site puts again once it is evicted",
        (
            Change(
                "fl/transport/hub.py",
                "self._evicted.append(name)",
                "pass",
            ),
        ),
        (
            (
                "tests/transport/test_hub.py",
                "what_a_site_puts_again_after_its_eviction_goes_with_the_run",
            ),
        ),
        "a site's word",
    ),
    Defence(
        "a site's name for a metric that a tracker does not take",
        (Change("fl/trackers.py", r're.sub(r"\W", "_", name) or "_"', "name"),),
        (("tests/test_trackers.py", "a_name_that_a_site_makes_up_is_one_that_trackers_take"),),
        "a site's word",
    ),
    Defence(
        "an upload to a bucket that a site names and never completes",
        (Change("fl/transport/s3.py", "if upload is not None:", "if False:"),),
        (
            (
                "tests/transport/test_s3.py",
                "an_upload_that_a_site_never_completes_goes_with_its_eviction",
            ),
        ),
        "a site's word",
    ),
    Defence(
        "a pipe in place of an update, in a folder that sites and server share",
        (Change("fl/transport/file.py", "buffering=0, opener=_regular)", "buffering=0)"),),
        (("tests/transport/test_file.py", "what_is_no_file_is_not_read[pipe]"),),
        "a site's word",
    ),
    Defence(
        "a folder for models that another user of the machine has made beforehand",
        (Change("fl/transport/file.py", "if mode & stat.S_IWOTH:", "if False:"),),
        (("tests/transport/test_file.py", "a_folder_that_every_user_can_write_to_is_refused"),),
        "a site's word",
    ),
    Defence(
        "a line that a site's message would forge in a log",
        (
            Change(
                "fl/endpoints/base.py",
                '" ".join(legible_lines(text).split())',
                "legible_lines(text)",
            ),
        ),
        (
            ("tests/server/test_distrust.py", "a_sites_message_forges_no_line"),
            ("tests/test_check.py", "what_a_site_says_moves_no_cursor"),
        ),
        "a site's word",
    ),
    Defence(
        "control characters and lines in the names of an update's tensors",
        (Change("fl/server/federation.py", "legible(str(error)), trace", "str(error), trace"),),
        (
            (
                "tests/server/test_distrust.py",
                "what_is_not_believed_is_dropped_named_and_counted",
            ),
        ),
        "a site's word",
    ),
    Defence(
        "markup, and a number that no float holds, in what a site says to a check",
        (
            Change("fl/check_table.py", "Text(check.check)", "check.check"),
            Change(
                "fl/check_sites.py", "KeyError, OverflowError, TypeError", "KeyError, TypeError"
            ),
        ),
        (
            ("tests/test_check_table.py", "a_sites_words_are_no_markup"),
            ("tests/test_check.py", "a_clock_that_no_float_holds_is_an_answer_of_another_version"),
        ),
        "a site's word",
    ),
    Defence(
        "complex numbers that no norm counts",
        (
            Change(
                "fl/tensors.py",
                "(torch.view_as_real(t) if t.is_complex() else t for t in tensors.values())",
                "(t for t in tensors.values())",
            ),
        ),
        (("tests/server/test_norms.py", "the_norm_is_euclids_over_all_floating_point_tensors"),),
        "a site's word",
    ),
    Defence(
        "a link that is slow, and taken for a silent one",
        (Change("fl/transport/parts.py", "SEND_BYTES = 256 << 10", "SEND_BYTES = 256 << 20"),),
        (("tests/transport/test_parts.py", "a_slow_uplink_is_no_silent_one"),),
        "a site's word",
    ),
    Defence(
        "a server that asks for the loss of one person",
        (
            Change(
                "fl/client/check.py",
                "max(configs.val_batch_size, policy.min_samples)",
                "configs.val_batch_size",
            ),
            Change(
                "fl/client/check.py",
                "tells = configs.train_batch_size >= policy.min_samples",
                "tells = True",
            ),
        ),
        (
            ("tests/client/test_check.py", "a_rehearsal_tells_no_loss_of_fewer_than_the_owner"),
            ("tests/client/test_check.py", "a_rehearsals_step_tells_no_loss_of_fewer[9-False]"),
        ),
        "privacy",
    ),
    Defence(
        "a clipping norm that float32 does not know",
        (Change("fl/config.py", "Field(ge=1e-6, le=1e6)", "Field(gt=0)"),),
        (
            ("tests/test_config.py", "no_norm_is_so_small_that_float32_knows_none[1e-35-dp_sgd]"),
            ("tests/test_config.py", "no_norm_is_so_small_that_float32_knows_none[1e-35-local_dp]"),
        ),
        "privacy",
    ),
    Defence(
        "noise that float32 does not know",
        (Change("fl/client/dp_sgd.py", "if deviation < LEAST_DEVIATION:", "if False:"),),
        (("tests/client/test_dp_sgd.py", "noise_that_float32_would_not_hold_is_refused"),),
        "privacy",
    ),
    Defence(
        "a loss by which a sample weighs all others, under DP-SGD",
        (
            Change(
                "fl/client/trainer.py",
                "        if self._configs.dp_sgd is None:\n    "
                "        return loss(outputs, labels)\n",
                "        return loss(outputs, labels)\n",
            ),
        ),
        (("tests/client/test_dp_sgd.py", "a_sample_changes_no_other_ones_gradient"),),
        "privacy",
    ),
    Defence(
        "slices that are clipped in place of persons",
        (Change("fl/client/dp_sgd.py", "len(found) != samples", "False"),),
        (("tests/client/test_dp_sgd.py", "a_model_that_makes_more_samples_of_one_is_refused"),),
        "privacy",
    ),
    Defence(
        "two workers that pay for privacy at once",
        (Change("fl/client/spending.py", "fcntl.flock(lock, fcntl.LOCK_EX)", "pass"),),
        (("tests/client/test_spending.py", "two_workers_that_pay_at_once_have_both_paid"),),
        "privacy",
    ),
    Defence(
        "a batch job that ends, and takes tasks until then",
        (
            Change(
                "fl/server/patience.py",
                "SLOW = (UnreachableError.__name__, BlockEnded.__name__)",
                "SLOW = (UnreachableError.__name__,)",
            ),
        ),
        (
            (
                "tests/server/test_sites.py",
                "a_way_that_is_interrupted_and_a_block_that_ends_are_given_time[BlockEnded]",
            ),
        ),
        "a worker's end",
    ),
    Defence(
        "a device that a fault has broken for its worker",
        (Change("fl/client/task.py", "if devices.is_broken():", "if False:"),),
        (("tests/client/test_task.py", "a_process_whose_device_is_broken_ends"),),
        "a worker's end",
    ),
    Defence(
        "what a site says of its samples makes the others' next to nothing",
        (
            Change(
                "fl/server/federation.py",
                "            if not task.recovered:\n",
                "            self._memory[task.client_id].num_samples = answer.num_samples\n"
                "            if not task.recovered:\n",
            ),
        ),
        (("tests/server/test_distrust.py", "what_a_site_says_of_its_samples_counts_once"),),
    ),
    Defence(
        "a model of before is evicted on a site's word",
        (
            Change(
                "fl/server/objects.py",
                "for model in [*self._models.values(), *self._kept]",
                "for model in self._models.values()",
            ),
        ),
        (("tests/server/test_distrust.py", "a_model_of_before_is_not_evicted"),),
    ),
    Defence(
        "a late answer of an earlier turn has the site's next one thrown away",
        (Change("fl/server/sites.py", "if task.turn == site.turn:", "if True:"),),
        (("tests/server/test_sites.py", "a_late_answer_of_an_earlier_turn"),),
    ),
]
