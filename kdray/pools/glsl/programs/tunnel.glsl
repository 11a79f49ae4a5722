// A tube with tiles on its wall.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at) - 0.5 * vec2(random(0) - 0.5, random(1) - 0.5);
    float sides = float(count(2, 3, 8)), round_ = step(0.4, random(3));
    float angle = atan(p.y, p.x) + 0.3 * iTime, wedge = TAU / sides;
    float flat_far = length(p) * cos(mod(angle, wedge) - 0.5 * wedge);
    float far = mix(flat_far, length(p), round_) + 1e-3, depth = between(4, 0.3, 0.9) / far + iTime;
    vec2 tile = vec2(floor(angle / TAU * float(count(5, 2, 6)) * 2.0 + between(6, 0.0, 1.0) * depth),
        floor(depth * 2.0));
    vec3 own = mix(mix(ink(7), ink(8), mod(tile.x + tile.y, 2.0)), palette(dice(tile)), random(9));
    colour = vec4(own * smoothstep(0.0, 0.8, far) * 1.3, 1);
}
