// A grid seen through drops of glass.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at), q = p;
    float shade = 1.0;
    for (int k = 0; k < 3; k++) {
        vec2 centre = vec2(between(k, -0.7, 0.7), between(k + 10, -0.7, 0.7)) + 0.2 * sin(iTime + vec2(k, k + 2));
        float size = between(k + 20, 0.35, 0.75), far = length(p - centre) / size;
        if (far < 1.0) {
            q = centre + (p - centre) * (0.25 + 0.75 * far * far);
            shade = 1.15 - 0.6 * pow(far, 6.0) + 0.4 * smoothstep(0.3, 0.0,
                length((p - centre) / size - vec2(-0.35, 0.4)));
        }
    }
    q = turn(TAU * random(30)) * q * between(31, 2.0, 5.0) + iTime * 0.3;
    vec2 cell = floor(q), line = abs(fract(q) - 0.5);
    vec3 own = random(32) < 0.5 ? mix(ink(33), ink(34), mod(cell.x + cell.y, 2.0))
        : mix(ink(33), palette(dice(cell)), step(0.15, 0.5 - max(line.x, line.y)));
    colour = vec4(own * shade, 1);
}
